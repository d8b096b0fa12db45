"""What a subscription does when its consumer is slower than the stream: a policy that the caller names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DEFAULT_MESSAGES = 10_000
DEFAULT_BYTES = 32 * 1024 * 1024

_WhenFull = Literal["block", "drop_oldest", "drop_newest", "latest"]


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Bound of a subscription's queue, and what happens at the bound. An empty queue always admits one message.

    Build it with `block`, `drop_oldest`, `drop_newest` or `latest`.

    Attributes:
        when_full: ``"block"`` holds the stream back, the others drop and count.
        max_messages: bound in messages, at least 1.
        max_bytes: bound in bytes of payload, headers and keys, at least 1.
    """

    when_full: _WhenFull
    max_messages: int = DEFAULT_MESSAGES
    max_bytes: int = DEFAULT_BYTES

    def __post_init__(self) -> None:
        if self.when_full not in get_args(_WhenFull):
            raise ValueError(
                f"when_full is one of {', '.join(map(repr, get_args(_WhenFull)))}, not {self.when_full!r}."
            )
        for name in ("max_messages", "max_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} is a number of {name[4:]} (int), not {type(value).__name__}.")
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value}: a queue without room could deliver nothing.")

    @classmethod
    def block(cls, n: int = DEFAULT_MESSAGES, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Hold the stream back: for ever on Kafka, where the log waits; at most ``block_timeout`` on Redis and NATS,
        whose brokers cut a reader that stalls, and then drop the newest."""
        return cls("block", n, max_bytes)

    @classmethod
    def drop_oldest(cls, n: int = DEFAULT_MESSAGES, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Drop the oldest queued message: a live stream wants fresh frames."""
        return cls("drop_oldest", n, max_bytes)

    @classmethod
    def drop_newest(cls, n: int = DEFAULT_MESSAGES, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Drop the message that does not fit: for consumers that want an unbroken beginning."""
        return cls("drop_newest", n, max_bytes)

    @classmethod
    def latest(cls, n: int = 1, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Keep only the newest ``n`` messages: for control loops and displays."""
        return cls("latest", n, max_bytes)
