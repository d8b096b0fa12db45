"""The meaning of Redis error replies. The only module that parses their texts.

Source: the Redis documentation of ACL and AUTH, and the replies of Redis 5 to 8 and Valkey 9 (``server.c``, ``acl.c``,
``networking.c``). An error that is not listed is temporary: LOADING, BUSY, OOM, MASTERDOWN, CLUSTERDOWN, READONLY,
"max number of clients reached" and whatever a later version adds.
"""

from __future__ import annotations

from msight_bus.backends.failover import Meaning
from msight_bus.errors import AuthenticationError, BusError, quoted
from msight_bus.settings.error_redaction import chain

REFUSALS = (
    ("WRONGPASS", Meaning.CREDENTIALS),  # AUTH: unknown user, wrong password, or the user is disabled
    ("NOAUTH", Meaning.CREDENTIALS),  # any command where a password is required and none was sent
    ("ERR invalid password", Meaning.CREDENTIALS),  # AUTH before Redis 6
    ("ERR AUTH <password> called without any password configured", Meaning.CREDENTIALS),  # AUTH since Redis 6
    ("ERR Client sent AUTH, but no password is set", Meaning.CREDENTIALS),  # AUTH before Redis 6
    ("NOPERM", Meaning.PERMISSION),  # the user is not permitted to run the command, or to use the channel
)
"""The prefixes of refusals, and their meaning."""


def meaning_of(text: str) -> Meaning:
    """Return the meaning of an error reply; ``text`` includes the code, without the ``-`` before it."""
    return next((meaning for start, meaning in REFUSALS if text.startswith(start)), Meaning.TEMPORARY)


def broker_error(text: str, glob: str | None = None) -> BusError:
    """Convert an error reply on an open connection into a typed error.

    Args:
        text: the reply.
        glob: the glob-style pattern of a refused PSUBSCRIBE.
    """
    if meaning_of(text) is Meaning.TEMPORARY:
        return BusError(f"Redis answered: {quoted(text)}")
    hint = "" if glob is None else f"; the user's ACL needs '&{glob}' or '&*': a wider pattern does not permit it"
    return AuthenticationError(f"Redis refused: {quoted(text)}{hint}")


def find_reply(error: BaseException) -> str | None:
    """Return the error reply that caused an exception of redis-py, with the code that redis-py removes; None without a reply."""
    for link in chain(error):
        code = getattr(link, "status_code", None)
        if code is not None:
            return f"{code} {link}"
        if type(link).__name__ == "ResponseError" or meaning_of(str(link)) is not Meaning.TEMPORARY:
            return str(link)
    return None
