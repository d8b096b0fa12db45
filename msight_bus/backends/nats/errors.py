"""The meaning of the ``-ERR`` texts of NATS. The only module that parses them.

Source: the NATS client protocol reference, ADR-40 (client life cycle), and nats-server 2.15 (``server/client.go``,
``server/auth.go``, ``server/errors.go``). An error that is not listed is temporary; nats-server closes the connection after
any but a permissions violation.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from msight_bus.backends.failover import Meaning

REFUSALS = (
    ("authorization violation", Meaning.CREDENTIALS),  # wrong or missing credentials, at CONNECT or after a reload
    ("user authentication expired", Meaning.CREDENTIALS),  # the user's JWT
    ("user authentication revoked", Meaning.CREDENTIALS),  # the user's JWT, by its account
    ("account authentication expired", Meaning.CREDENTIALS),  # the account's JWT
    ("authentication expired", Meaning.CREDENTIALS),  # nats-server before 2.2
    ("permissions violation", Meaning.PERMISSION),  # of one subject
    # Not "authentication timeout": CONNECT was not taken within the server's auth timeout (2 s), which a wrong password
    # never causes and a restart with many clients does.
)
"""The prefixes of refusals, in lower case, and their meaning."""

_PERMISSION = re.compile(
    r"permissions violation for (publish|subscription) to \"([^\"]+)\"(?: using queue \"[^\"]*\")?(?: \(sid \"([^\"]+)\"\))?",
    re.IGNORECASE,
)


class RefusedSubject(NamedTuple):
    """The subject that a permissions violation is about.

    Attributes:
        operation: the refused operation.
        subject: the subject.
        sid: subscription id; nats-server names it when a reload revokes the permission, else None.
    """

    operation: Literal["publish", "subscription"]
    subject: str
    sid: str | None


def normalize(text: str) -> str:
    """Return the text of an ``-ERR`` without quotation marks and without the prefix of nats-py."""
    return text.removeprefix("nats: ").strip().strip("'")


def meaning_of(text: str) -> Meaning:
    """Return the meaning of the text of an ``-ERR``."""
    lowered = normalize(text).lower()
    return next((meaning for start, meaning in REFUSALS if lowered.startswith(start)), Meaning.TEMPORARY)


def refused_subject(text: str) -> RefusedSubject | None:
    """Parse a permissions violation; None if the text is not one that names a subject."""
    found = _PERMISSION.match(normalize(text))
    if found is None:
        return None
    return RefusedSubject("publish" if found[1].lower() == "publish" else "subscription", found[2], found[3])
