"""What happens to a bus besides messages; given to the ``on_event`` callback of `msight_bus.connect`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection to the broker was lost; the bus is reconnecting. ``reason`` is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The connection is back and every subscription is confirmed again.

    Attributes:
        attempts: how many tries it took.
    """

    attempts: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A subscription has missed messages.

    Attributes:
        topic: the subscription's topic.
        missing: how many messages; ``None`` if that cannot be known.
        cause: ``"lost"`` on the way, ``"reconnect"``, ``"retention"`` of a log, ``"unreadable"``: records that are damaged, or
            too large decompressed, ``"implausible"``: a sequence jumped farther than its publisher can have, or ``"evicted"``: a
            publisher's session was forgotten, for there were too many, and its losses since are not known.
        at_most: ``missing`` is an upper bound: some of a log's offsets never held a message.
    """

    topic: str
    missing: int | None
    cause: str
    at_most: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refused a message after it was handed over; the next publish on the topic raises this too."""

    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadlineMissed:
    """A subscription's stream has gone quiet; said once, until a message comes again.

    Attributes:
        topic: the subscription's topic.
        seconds: its deadline, for which nothing has come.
    """

    topic: str
    seconds: float


BusEvent = Disconnected | Reconnected | Gap | Refused | DeadlineMissed
