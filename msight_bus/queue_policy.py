"""`QueuePolicy`: the bound of a subscription's queue, and the action at the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DEFAULT_MESSAGES = 10_000
DEFAULT_BYTES = 32 * 1024 * 1024

_WhenFull = Literal["block", "drop_oldest", "drop_newest", "latest"]


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """The bound of a subscription's queue, and the action at the bound. An empty queue always admits one message.

    Made by `block`, `drop_oldest`, `drop_newest` or `latest`, whose arguments are the bound in messages and in bytes.

    Attributes:
        when_full: ``"block"`` pauses the stream; the other policies drop messages and count the drops.
        max_messages: bound in messages, at least 1.
        max_bytes: bound in bytes of payload, headers and keys, at least 1.
    """

    when_full: _WhenFull
    max_messages: int = DEFAULT_MESSAGES
    max_bytes: int = DEFAULT_BYTES

    def __post_init__(self) -> None:
        if self.when_full not in get_args(_WhenFull):
            raise ValueError(
                f"when_full must be one of {', '.join(map(repr, get_args(_WhenFull)))}, not {self.when_full!r}."
            )
        for name in ("max_messages", "max_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")

    @classmethod
    def block(cls, n: int = DEFAULT_MESSAGES, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Pause the stream. On Kafka without a limit, because the log keeps the messages; on Redis and NATS, whose brokers
        disconnect a slow reader, for at most ``block_timeout``, then drop the newest messages."""
        return cls("block", n, max_bytes)

    @classmethod
    def drop_oldest(cls, n: int = DEFAULT_MESSAGES, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Drop the oldest queued messages: for live streams, where the newest frames matter."""
        return cls("drop_oldest", n, max_bytes)

    @classmethod
    def drop_newest(cls, n: int = DEFAULT_MESSAGES, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Drop the messages that do not fit: for consumers that need a contiguous beginning."""
        return cls("drop_newest", n, max_bytes)

    @classmethod
    def latest(cls, n: int = 1, *, max_bytes: int = DEFAULT_BYTES) -> QueuePolicy:
        """Keep only the newest ``n`` messages: for control loops and displays."""
        return cls("latest", n, max_bytes)
