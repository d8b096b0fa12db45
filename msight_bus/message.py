"""`Message`: a received message, and its headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, Protocol, cast

import msgspec

from msight_bus.data.decoding import looks_like_data
from msight_bus.data.types import DATA, T_co
from msight_bus.errors import DecodeError, UnsupportedError
from msight_bus.settings import Limits


class Headers(Mapping[str, str]):
    """The read-only headers of a message; ``dict(message.headers)`` returns a mutable copy."""

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
"""Approximate bytes of memory that one header takes besides its characters."""


def overhead(headers: Mapping[str, str], key: str | None) -> int:
    """Return the approximate bytes of memory that headers and a key take; they count against the bound of a queue."""
    size = 0 if key is None else len(key)
    return size + sum([len(name) + len(value) + _ENTRY_BYTES for name, value in headers.items()])


Decode = Callable[[bytes], Any]
"""Decodes a payload to a value of the type of a subscription; raises `DecodeError`."""

_limits = Limits()
_decode_data: Decode = partial(DATA.decode, max_bytes=_limits.max_decoded_bytes, max_nesting=_limits.max_nesting)


class Settlement(Protocol):
    """The acknowledgements of one partition of a log.

    Attributes:
        partition: number of the partition.
    """

    partition: int

    def settle(self, message: Message[Any]) -> None:
        """Acknowledge the message."""

    async def release(self, message: Message[Any]) -> None:
        """Request a redelivery of the message."""


class Message(msgspec.Struct, Generic[T_co], eq=False, gc=False):
    """A received message; ``Message[T]`` if its subscription has the type ``T``, else ``data`` is a `Data`.

    A `msgspec.Struct`, because creating messages is part of the hot path.

    Attributes:
        topic: the topic that the message was published on.
        payload: the published bytes, unchanged.
        headers: user headers; empty without headers.
        key: ordering key; ``None`` without a key.
        sequence: number of the message among its publisher's messages on this topic, from 1; ``None`` from a foreign publisher.
        published_at: POSIX seconds by the publisher's clock. From a foreign publisher: on Kafka, the timestamp of the record (by
            the broker's clock if the topic uses LogAppendTime), ``None`` if implausible; elsewhere ``None``.
        received_at: POSIX seconds by this machine's clock.
        session: random id of the publisher, new at each start; ``None`` from a foreign publisher.
        offset: offset in the partition of a log; ``None`` without a log.
        redeliveries: number of redeliveries, caused by ``nack`` or by iterating again.
        tombstone: whether the record has no value, which deletes its key in a compacted topic; the payload is then ``b""``.
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
    _data: T_co | None = None
    _decode: Decode | None = None
    _overhead: int = 0

    @property
    def position(self) -> tuple[int, int] | None:
        """Hashable position ``(partition, offset)`` in a log; ``None`` without a log."""
        if self._settlement is None or self.offset is None:
            return None
        return self._settlement.partition, self.offset

    @property
    def data(self) -> T_co:
        """The payload as a value of the subscription's type, decoded on first use.

        Raises:
            DecodeError: the payload is not of the type, or exceeds ``MSIGHT_MAX_DECODED_BYTES`` or ``MSIGHT_MAX_NESTING``.
        """
        if self._data is None:
            try:
                self._data = (self._decode or _decode_data)(self.payload)
            except DecodeError as error:
                hint = "; it is a tombstone and has no value (message.tombstone)" if self.tombstone else ""
                if not hint and str(error).startswith("Data: ") and not looks_like_data(self.payload):
                    hint = "; use message.payload for bytes, and subscribe(topic, type=...) for another type"
                raise DecodeError(
                    f"The message on {self.topic!r} cannot be decoded as {error}{hint}"
                ) from error.__cause__
        return cast(T_co, self._data)

    @property
    def view(self) -> memoryview:
        """A read-only view of the payload, without a copy."""
        return memoryview(self.payload)

    async def ack(self) -> None:
        """Acknowledge the message. Does nothing on a backend without acknowledgements."""
        if self._settlement is not None:
            self._settlement.settle(self)

    async def nack(self) -> None:
        """Request a redelivery; after ``max_redeliveries``, the message is dead-lettered.

        Raises:
            UnsupportedError: the backend does not keep messages.
        """
        if self._settlement is None:
            raise UnsupportedError("nack() needs a backend that keeps messages; set MSIGHT_PUBSUB_BACKEND=kafka.")
        await self._settlement.release(self)

    def __repr__(self) -> str:
        which = f"sequence={self.sequence}" if self.position is None else f"position={self.position}"
        return f"Message(topic={self.topic!r}, {len(self.payload)} bytes, {which})"
