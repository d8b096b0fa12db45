"""The events of a bus, passed to the ``on_event`` callback of `msight_bus.connect`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection to the broker was lost; the bus is reconnecting.

    Attributes:
        reason: cause of the disconnect, as text for logs.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The bus has reconnected, and the broker has confirmed every subscription again.

    Attributes:
        attempts: number of attempts to connect.
    """

    attempts: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of a subscription are missing.

    Attributes:
        topic: the topic of the missing messages.
        missing: number of messages; ``None`` if unknown.
        cause: ``"lost"``: not delivered by the broker; ``"reconnect"``: published during a disconnect; ``"retention"``: deleted
            from the log before they were read; ``"unreadable"``: damaged records, or records too large when decompressed;
            ``"implausible"``: the sequence jumped farther than a publisher can publish; ``"evicted"``: the session of a
            publisher was evicted, so that its later losses are unknown.
        at_most: whether ``missing`` is an upper bound, because offsets of the log can be without a message.
    """

    topic: str
    missing: int | None
    cause: str
    at_most: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refused a message after it was sent. The next call of the message's publisher raises the error, too.

    Attributes:
        topic: the topic of the refused message.
        reason: the broker's reason, as text for logs.
    """

    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadlineMissed:
    """No message arrived within the deadline of a subscription. Reported once until the next message.

    Attributes:
        topic: the subscription's topic.
        seconds: the deadline.
    """

    topic: str
    seconds: float


BusEvent = Disconnected | Reconnected | Gap | Refused | DeadlineMissed
