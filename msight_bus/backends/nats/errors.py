"""What the ``-ERR`` texts of NATS mean. The only place that reads them.

Source: the NATS client protocol reference, ADR-40 (client life cycle), and nats-server 2.15 (``server/client.go``,
``server/auth.go``, ``server/errors.go``). An error that is not listed is passing; nats-server closes the connection after
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
"""How the text of a refusal begins, in lower case, and what it means."""

_PERMISSION = re.compile(
    r"permissions violation for (publish|subscription) to \"([^\"]+)\"(?: using queue \"[^\"]*\")?(?: \(sid \"([^\"]+)\"\))?",
    re.IGNORECASE,
)


class RefusedSubject(NamedTuple):
    """The subject that a permissions violation is about.

    Attributes:
        operation: what was refused.
        subject: where.
        sid: id of the subscription, where the server tells it: nats-server does so when a reload takes the permission away.
    """

    operation: Literal["publish", "subscription"]
    subject: str
    sid: str | None


def normalize(text: str) -> str:
    """Return the text of an ``-ERR`` without quotation marks, and without what nats-py puts before it."""
    return text.removeprefix("nats: ").strip().strip("'")


def meaning_of(text: str) -> Meaning:
    """Return what the text of an ``-ERR`` means."""
    lowered = normalize(text).lower()
    return next((meaning for start, meaning in REFUSALS if lowered.startswith(start)), Meaning.PASSING)


def refused_subject(text: str) -> RefusedSubject | None:
    """Return what a permissions violation is about; None if the text is none that names a subject."""
    found = _PERMISSION.match(normalize(text))
    if found is None:
        return None
    return RefusedSubject("publish" if found[1].lower() == "publish" else "subscription", found[2], found[3])
