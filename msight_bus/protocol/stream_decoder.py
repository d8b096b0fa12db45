"""`Decoder`: decodes a byte stream, in pieces of any size, into messages and replies. Shared by Redis and NATS. Pure.

A `Decoder` has a `Grammar`, which reads frames from their structure, and a `HeadCache`, which recognises frames that repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import is_not
from typing import Protocol

import msgspec

from msight_bus.errors import ConnectionLostError, quoted
from msight_bus.protocol.head_cache import Address, Frame, HeadCache, Meta, Series, Shape

Undecoded = tuple[bytes, bytes]
"""A message that is not a `Frame`: its undecoded metadata (see ``decode_metadata`` of the protocol) and its payload."""

Segment = tuple[Address, list[Frame] | None, list[Undecoded]]
"""Messages of one address, all of one kind: a list of `Frame`, or ``None`` and a list of `Undecoded`."""

LIMIT = 4096
"""Default maximum number of frames and replies that one call of `Decoder.feed` decodes."""

NO_UNDECODED: list[Undecoded] = []
"""The third item of a segment of frames."""

_COPY_BELOW = 4096
"""Bytes. A shorter beginning of a payload is copied, so that the received data can be freed."""

_ALIKE = 3
"""Consecutive frames of one shape after which further ones are decoded together."""

_RUN = 4
"""Minimum mean number of consecutive messages of one address for which joining them to segments costs less than it saves."""

_PARTS = 1024
"""Maximum number of parts of an incomplete payload; then they are joined, because small objects have a large overhead."""


class ProtocolError(ConnectionLostError):
    """The peer does not speak the protocol."""


class FrameTooLargeError(ProtocolError):
    """The peer announced a message over the limit; none of its payload was buffered.

    Attributes:
        size: bytes that the peer announced.
        limit: bytes that are accepted.
    """

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A reply or control line: anything but a message.

    Attributes:
        kind: NATS: ``PING``, ``PONG``, ``OK``, ``INFO``, ``error``. Redis: ``integer``, ``status``, ``PONG``, ``error``,
            ``bulk``, ``array``, ``subscribe``, ``unsubscribe``, ``psubscribe``, ``punsubscribe``.
        data: the text of an error or status, the JSON of ``INFO``, the channel of a confirmation, the content
            of a bulk string; otherwise empty.
        count: number of consecutive replies that this one represents; over 1 only for ``integer``.
        elements: the elements of an ``array``: bytes, int, None or lists.
    """

    kind: str
    data: bytes = b""
    count: int = 1
    elements: list[object] | None = None

    @property
    def value(self) -> object:
        """The value of the reply: ``elements`` of an array, else ``data``."""
        return self.data if self.elements is None else self.elements

    @property
    def text(self) -> str:
        """``data`` as printable text on one line."""
        return quoted(self.data)


def _parts(item: Segment | Series | Reply) -> Iterable[Segment | Series | Reply]:
    """Split a series into segments if the runs of one address are long."""
    if not isinstance(item, tuple) or len(item) == 3:
        return (item,)
    addresses = item[0]
    runs = 1 + sum(map(is_not, addresses, islice(addresses, 1, None)))
    return _runs(item) if len(addresses) >= _RUN * runs else (item,)


def _runs(series: Series) -> Iterator[Segment]:
    """Split a series into segments."""
    addresses, frames = series
    start = 0
    for address, run in groupby(addresses):
        stop = start + len(list(run))
        yield address, frames[start:stop], NO_UNDECODED
        start = stop


class DecodeBuffer:
    """The decoded messages and replies in the order of the stream, and the beginning of an incomplete message.

    Between two replies, either the order of all messages is kept (``ordered``), or messages are grouped by address and only the
    order within an address is kept.

    Attributes:
        ordered: whether the order of all messages is kept. Then ``opened`` is empty, and ``opened_undecoded`` has the last item
            only.
        items: segments, series and replies.
        series_begun: whether there is a series among the items.
        opened: the segment that further frames join, by address.
        opened_undecoded: the segment that further foreign messages join, by address. An address is in at most one of the two.
        needed: bytes of an incomplete frame that must arrive before decoding it again can succeed; 0 if unknown.
        missing: bytes of an incomplete payload that have not arrived, CR LF included; 0 if no payload is incomplete.
    """

    __slots__ = (
        "_parts",
        "_pending",
        "_series",
        "items",
        "missing",
        "needed",
        "opened",
        "opened_undecoded",
        "ordered",
        "series_begun",
    )

    def __init__(self) -> None:
        self.ordered = False
        self.items: list[Segment | Series | Reply] = []
        self.opened: dict[Address, list[Frame]] = {}
        self.opened_undecoded: dict[Address, list[Undecoded]] = {}
        self.needed = 0
        self.missing = 0
        self.series_begun = False
        self._series: Series | None = None  # the last item, if it is a series
        self._parts: list[bytes | memoryview] = []
        self._pending: tuple[Address, Meta | None, bytes] = b"", None, b""

    def add_reply(self, reply: Reply) -> None:
        """Add a reply; later messages begin new segments."""
        self.items.append(reply)
        self.opened.clear()
        self.opened_undecoded.clear()
        self._series = None

    def close(self) -> None:
        """Begin new segments or a new series with the next message."""
        self.opened.clear()
        self.opened_undecoded.clear()
        self._series = None

    def series(self) -> Series:
        """Return the series that further frames join, if the order is kept."""
        if self._series is None:
            self.close()
            self._series = [], []
            self.series_begun = True
            self.items.append(self._series)
        return self._series

    def add(self, address: Address, frame: Frame) -> None:
        """Add a frame."""
        if self.ordered:
            addresses, frames = self._series or self.series()
            addresses.append(address)
        elif address in self.opened:
            frames = self.opened[address]
        else:
            frames = self.open(address)
        frames.append(frame)

    def open(self, address: Address) -> list[Frame]:
        """Begin a segment of frames; return its list."""
        if self.opened_undecoded:
            self.opened_undecoded.pop(address, None)
        frames: list[Frame] = []
        self.opened[address] = frames
        self.items.append((address, frames, NO_UNDECODED))
        return frames

    def add_undecoded(self, address: Address, undecoded: Undecoded) -> list[Undecoded]:
        """Add a message that is not a frame; return the list of its segment."""
        found = self.opened_undecoded.get(address)
        if found is None:
            if self.ordered:
                self.close()
            else:
                self.opened.pop(address, None)
            found = self.opened_undecoded[address] = []
            self.items.append((address, None, found))
        found.append(undecoded)
        return found

    def begin(self, pending: tuple[Address, Meta | None, bytes], data: bytes, start: int, missing: int) -> None:
        """Keep the beginning of a payload; `fill` joins the parts once, when the last byte has arrived.

        Args:
            pending: address, metadata of a frame or ``None``, header block of a foreign message.
            data: the chunk, which ends within the payload.
            start: where the payload begins.
            missing: bytes to come, CR LF included.
        """
        self._pending, self.missing = pending, missing
        self._parts.append(data[start:] if len(data) - start < _COPY_BELOW else memoryview(data)[start:])

    def fill(self, data: bytes) -> tuple[Address, Meta | None, bytes, bytes] | None:
        """Continue an incomplete payload.

        Returns:
            Address, metadata, header block and payload if the message is complete, else None. The message ends at the offset that
            ``missing`` had before the call.
        """
        missing, parts = self.missing, self._parts
        if len(data) < missing:
            parts.append(data)
            self.missing -= len(data)
            if len(parts) > _PARTS:
                parts[:] = [b"".join(parts)]
            return None
        if missing > 2:
            parts.append(memoryview(data)[: missing - 2])
        payload = b"".join(parts)
        parts.clear()
        if missing < 2:
            payload = payload[:-1]  # the CR is in the last part
        self.missing = 0
        return (*self._pending, payload)


class Grammar(Protocol):
    """The parser of the frames of one protocol."""

    def read(self, data: bytes, position: int, limit: int, heads: HeadCache | None) -> tuple[int, int]:
        """Parse at most ``limit`` frames and replies from ``position`` on, and add them to the `DecodeBuffer`.

        Args:
            data: a chunk.
            position: where a frame begins.
            limit: maximum number of frames and replies, at least 1.
            heads: caches the head of the first message; parsing then stops, because the next head may be cached.

        Returns:
            The position of the first frame that was not parsed, and the number of frames parsed: 0 if the first frame is
            incomplete.

        Raises:
            ProtocolError: the peer does not speak the protocol.
        """

    def add_undecoded(self, address: Address, block: bytes, payload: bytes) -> None:
        """Add a complete message that is not a frame."""


class Decoder:
    """Messages and replies of one connection.

    Memory is bounded by one message, one control line and the items that `feed` has decoded since the last `take`.

    Attributes:
        taken: frames and replies decoded since the last `take`.
    """

    __slots__ = ("_buffer", "_chunks", "_grammar", "_heads", "_held", "_position", "_rest", "taken")

    def __init__(self, grammar: Grammar, buffer: DecodeBuffer, heads: HeadCache) -> None:
        self._grammar = grammar
        self._buffer = buffer
        self._heads = heads
        self._rest = b""  # a chunk that was not read to its end, because of a limit
        self._position = 0
        self._chunks: list[bytes] = []  # the beginning of a frame whose lengths have not arrived
        self._held = 0
        self.taken = 0

    def keep_order(self, ordered: bool) -> None:
        """Keep messages in the stream's order across addresses (``True``), or grouped by address (``False``, faster)."""
        self._buffer.ordered = ordered
        self._buffer.close()

    def take(self) -> list[Segment | Series | Reply]:
        """Return what `feed` has decoded since the last call, in the order of the stream.

        A series, which comes only if the order is kept, has few consecutive messages of one address.
        """
        self.taken = 0
        buffer = self._buffer
        items, buffer.items = buffer.items, []
        buffer.opened.clear()
        buffer.opened_undecoded.clear()
        if buffer.series_begun:
            buffer.close()
            buffer.series_begun = False
            items = [part for item in items for part in _parts(item)]
        return items

    def single(self, data: bytes) -> tuple[Address, Frame] | None:
        """Decode data that is exactly one frame with a cached head: the usual case below saturation.

        Returns:
            Address and frame; ``None``: nothing was decoded, call `feed`.
        """
        known = self._heads.known.get(data[: self._heads.head_bytes])
        if known is None or known[1].size != len(data) or self._chunks or self._rest:
            return None
        if self._buffer.missing or self._buffer.items:
            return None
        frame = known[1].frame(data, 0)
        if not frame[2]:  # foreign
            return None
        self._heads.hits += 1
        return known[0], frame

    def feed(self, data: bytes, limit: int = LIMIT) -> bool:
        """Decode the next bytes of the stream.

        Args:
            data: the bytes, a piece of any size; empty to continue with the rest after a limit.
            limit: maximum number of frames and replies to decode.

        Returns:
            Whether the limit was reached with bytes left over: call again with ``b""``.

        Raises:
            ProtocolError: the peer does not speak the protocol; `FrameTooLargeError` if a message exceeds the limit.
        """
        position = 0
        if self._rest:
            data, position = (self._rest[self._position :] + data, 0) if data else (self._rest, self._position)
            self._rest = b""
        left = limit
        buffer = self._buffer
        if buffer.missing:
            if (after := self._fill(data)) == 0:
                return False
            position, left = after, left - 1
        elif self._chunks and not position:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < buffer.needed:
                return False
            data = b"".join(self._chunks)
            self._chunks.clear()
        buffer.needed = 0
        position, left = self._decode(data, position, left)
        self.taken += limit - left
        if position == len(data):
            return False
        if left <= 0:  # a payload that ends here is decoded even if the limit is 0
            self._rest, self._position = data, position
            return True
        self._chunks.append(data[position:])
        self._held = len(data) - position
        return False

    def _fill(self, data: bytes) -> int:
        """Continue a payload; return the position of its end, 0 if the end has not arrived."""
        after = self._buffer.missing
        complete = self._buffer.fill(data)
        if complete is None:
            return 0
        address, meta, block, payload = complete
        if meta is None:
            self._grammar.add_undecoded(address, block, payload)
        else:
            session, sequence, published = meta
            self._buffer.add(address, (b"", session, sequence, published, payload))
        return after

    def _decode(self, data: bytes, position: int, left: int) -> tuple[int, int]:
        """Decode until the limit or the first incomplete frame; return the position, and the rest of the limit."""
        heads, buffer, read = self._heads, self._buffer, self._grammar.read
        known, opened = heads.known, buffer.opened
        startswith, end = data.startswith, len(data)
        while left > 0 and position < end:
            if heads.pause:
                after, taken = read(data, position, min(left, heads.pause), None)
                heads.pause -= taken
            else:
                head_bytes, before, complete = heads.head_bytes, left, True
                if buffer.ordered:
                    position, left, complete = self._decode_in_order(data, position, left)
                else:
                    while left and (found := known.get(data[position : position + head_bytes])) is not None:
                        address, shape = found
                        if (after := position + shape.size) > end:
                            complete = False
                            break
                        frame = shape.frame(data, position)
                        if not frame[2]:  # foreign
                            break
                        frames = opened.get(address)
                        if frames is None:
                            frames = buffer.open(address)
                        frames.append(frame)
                        left -= 1
                        position = after
                        if startswith(frame[0], after):
                            position, more = heads.take_run(shape, frames, data, after, left)
                            left -= more
                heads.hits += before - left
                if not left or position == end:
                    break
                after, taken = read(data, position, left, heads)
                if complete:
                    heads.missed()
            if not taken:
                break
            position = after
            left -= taken
        return position, left

    def _decode_in_order(self, data: bytes, position: int, left: int) -> tuple[int, int, bool]:
        """Decode frames with known heads; return the position, the rest of the limit, and whether the last frame is complete."""
        heads, add = self._heads, self._buffer.add
        known, head_bytes, end = heads.known, heads.head_bytes, len(data)
        last: Shape | None = None
        alike = 0  # frames in a row whose shape is the one before
        while left and (found := known.get(data[position : position + head_bytes])) is not None:
            address, shape = found
            if (after := position + shape.size) > end:
                return position, left, False
            if alike >= _ALIKE and shape is last:
                position, more = heads.take_series(shape, self._buffer.series(), data, position, left)
                left -= more
                alike = 0
                continue
            frame = shape.frame(data, position)
            if not frame[2]:  # foreign
                break
            add(address, frame)
            last, alike = shape, alike + 1 if shape is last else 0
            left -= 1
            position = after
        return position, left, True
