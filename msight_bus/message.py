"""The message that a subscription hands out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from msight_bus.data import Data, decode
from msight_bus.errors import UnsupportedError
from msight_bus.settings import Limits


class Headers(Mapping[str, str]):
    """The headers of a message; ``dict(message.headers)`` gives a copy that can be changed."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = dict(pairs)

    def __getitem__(self, name: str) -> str:
        return self._pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return repr(self._pairs)


NO_HEADERS: Mapping[str, str] = Headers({})
_ENTRY_BYTES = 100
"""Memory of one header beside its characters, roughly."""


def overhead(headers: Mapping[str, str], key: str | None) -> int:
    """Bytes that headers and a key take in memory, by estimate, so that a queue can bound them too."""
    size = 0 if key is None else len(key)
    return size + sum([len(name) + len(value) + _ENTRY_BYTES for name, value in headers.items()])


_DEFAULTS = Limits()


class Settlement(Protocol):
    """Who keeps the acknowledgements of one partition of a log.

    Attributes:
        partition: its number.
    """

    partition: int

    def settle(self, message: Message) -> None:
        """Mark the message as done."""

    async def release(self, message: Message) -> None:
        """Ask for the message to be delivered again."""


class Message(msgspec.Struct, eq=False, gc=False):
    """One message, as it was received.

    A C-level struct: building it is part of the hot path.

    Attributes:
        topic: where it was published.
        payload: exactly what was published.
        headers: the publisher's own headers; empty if there are none.
        key: the ordering key, ``None`` if the publisher gave none.
        sequence: position in its publisher's stream on this topic, from 1; ``None`` from a foreign publisher.
        published_at: POSIX seconds by the publisher's clock. From a foreign publisher the timestamp of its record on Kafka (the
            broker's clock where the topic has LogAppendTime), ``None`` elsewhere or if that can be no such moment.
        received_at: POSIX seconds by this machine's clock.
        session: the publisher's random id, new at each start; ``None`` from a foreign publisher.
        offset: place in its partition where the backend has a log, else ``None``.
        redeliveries: how often ``nack`` or a repeated iteration has brought it again.
        tombstone: whether a record of a log had no value, which in a compacted topic deletes its key; the payload is ``b""``.
    """

    topic: str
    payload: bytes
    headers: Mapping[str, str] = NO_HEADERS
    key: str | None = None
    session: int | None = None
    sequence: int | None = None
    published_at: float | None = None
    received_at: float = 0.0
    offset: int | None = None
    redeliveries: int = 0
    _settlement: Settlement | None = None
    tombstone: bool = False
    _settled: bool = False
    _data: Data | None = None
    _limits: Limits | None = None
    _overhead: int = 0

    @property
    def position(self) -> tuple[int, int] | None:
        """``(partition, offset)`` where the backend has a log, else ``None``."""
        if self._settlement is None or self.offset is None:
            return None
        return self._settlement.partition, self.offset

    @property
    def data(self) -> Data:
        """The payload as a ``Data`` value, decoded on first use.

        Raises:
            DecodeError: the payload is not a known ``Data`` value, or is over ``MSIGHT_MAX_DECODED_BYTES`` or
                ``MSIGHT_MAX_NESTING``.
        """
        if self._data is None:
            limits = self._limits or _DEFAULTS
            self._data = decode(self.payload, max_bytes=limits.max_decoded_bytes, max_nesting=limits.max_nesting)
        return self._data

    async def ack(self) -> None:
        """Mark this message as done. Where nothing is acknowledged it does nothing."""
        if self._settlement is not None:
            self._settlement.settle(self)

    async def nack(self) -> None:
        """Ask for this message again; after ``max_redeliveries`` it goes to the dead-letter topic.

        Raises:
            UnsupportedError: the backend keeps no message to deliver again.
        """
        if self._settlement is None:
            raise UnsupportedError("nack() needs a backend that keeps messages: set MSIGHT_PUBSUB_BACKEND=kafka.")
        await self._settlement.release(self)

    def __repr__(self) -> str:
        which = f"sequence={self.sequence}" if self.position is None else f"position={self.position}"
        return f"Message(topic={self.topic!r}, {len(self.payload)} bytes, {which})"
