"""Frames in a byte stream, however it is cut: what the parsers of Redis and NATS share. Pure.

Most streams repeat themselves: a frame's head, which holds its lengths, mostly is one that came before. So heads are
remembered, a known one is taken without reading its numbers again, and frames that go on with the same head are taken by one
C-level loop. A head is compared for every frame; nothing is taken on trust from the frame before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Reply = TypeVar("Reply")

Meta = tuple[int, int, int]
"""Session, sequence, publish time in nanoseconds since 1970."""

Frame = tuple[bytes, int, int, int, bytes]
"""A message of the bus without key and headers: its head (or nothing), its `Meta`, its payload."""

Other = tuple[bytes, bytes]
"""Any other message: the metadata as the protocol has it, and the payload."""

Segment = tuple[bytes, list[Frame] | None, list[Other]]
"""Messages of one address (channel or subscription id) that follow one another, of one kind or of the other."""

_NO_OTHERS: list[Other] = []

_LIMIT = 4096
"""Heads remembered at most."""

_SHORTEST = 8
"""Frames that are taken in one go at first; later as many as the last run had, twice as many each time that all were alike."""

_COPY_BELOW = 4096
"""Beginnings of a payload under this many bytes are copied, so that they do not keep their chunk."""

_PARTS = 1024
"""Parts of a payload that are kept before they are joined: single bytes are much larger than they look."""


class Run:
    """Frames that differ only in their metadata and payload.

    Attributes:
        address: channel or subscription id.
        head: how each frame begins, up to its metadata.
        head_bytes: bytes of the head.
        size: bytes of a frame.
        row: unpacks the frame at an offset: the head and the fields.
        frame: the frame at an offset; ``None`` if it only looks like the bus's own.
    """

    __slots__ = ("_all", "address", "frame", "head", "head_bytes", "row", "size")

    def __init__(self, address: bytes, head: bytes, fields: str) -> None:
        """``fields`` is the `struct` layout behind the head; where it is a `Frame`'s, a row is a frame."""
        layout = struct.Struct(f">{len(head)}s{fields}")
        self.address = address
        self.head = head
        self.head_bytes = len(head)
        self.size = layout.size
        self.row: Callable[[bytes, int], Any] = layout.unpack_from
        self.frame: Callable[[bytes, int], Frame | None] = self.row
        self._all = layout.iter_unpack

    def rows(self, view: memoryview) -> list[Any]:
        """The head and the fields of each frame, up to the first whose head is another."""
        rows = list(self._all(view))
        return while_all([row[0] for row in rows], self.head, rows)


def while_all(values: list[bytes], wanted: bytes, rows: list[Any]) -> list[Any]:
    """The rows before the first whose value is not ``wanted``."""
    if values.count(wanted) == len(values):
        return rows
    return rows[: next(i for i, value in enumerate(values) if value != wanted)]


class FrameParser(Generic[Reply]):
    """Splits a byte stream into messages and replies: whatever else the protocol has.

    Each message goes to its address, and the messages of one address keep their order; so does everything beside a reply.
    A subclass reads one frame whose head is not known.

    Attributes:
        held: bytes of the frames that `take` would give.
    """

    __slots__ = (
        "_chunks",
        "_head_bytes",
        "_held",
        "_known",
        "_missing",
        "_needed",
        "_once",
        "_open",
        "_open_others",
        "_parts",
        "_pending",
        "_replies",
        "_run_length",
        "_segments",
        "held",
    )

    META_BYTES = 0
    """Bytes between the head of a `Run` and the payload."""

    def __init__(self) -> None:
        self.held = 0
        self._segments: list[Segment] = []
        self._replies: list[tuple[int, Reply]] = []
        self._open: dict[bytes, list[Frame]] = {}  # by address: the segment that more can join
        self._open_others: dict[bytes, list[Other]] = {}
        self._known: dict[bytes, Run] = {}
        self._once: set[bytes] = set()
        self._head_bytes = 0
        self._run_length = _SHORTEST
        # the beginning of a frame whose lengths are not all here
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 0
        # the beginning of a payload
        self._parts: list[bytes | memoryview] = []
        self._missing = 0  # bytes, CR LF included
        self._pending: tuple[bytes, Meta | None, bytes] = b"", None, b""  # address, and the one or the other metadata

    def take(self) -> tuple[list[Segment], list[tuple[int, Reply]]]:
        """What has come since the last call: messages, and each reply with the number of segments that came before it."""
        taken = self._segments, self._replies
        self._segments = []
        self._open.clear()
        self._open_others.clear()
        if self._replies:
            self._replies = []
        self.held = 0
        return taken

    def only(self, data: bytes) -> tuple[bytes, Frame] | None:
        """Address and frame, if this chunk is one whole frame with a known head and nothing came before it: as most are in a
        stream that is not saturated. Else ``None``, and the chunk is for `feed`."""
        run = self._known.get(data[: self._head_bytes])
        if run is None or run.size != len(data) or self.held or self._chunks or self._missing:
            return None
        frame = run.frame(data, 0)
        return None if frame is None else (run.address, frame)

    def feed(self, data: bytes) -> None:
        """Parse the next chunk, however it is cut."""
        self.held += len(data)
        position = 0
        if self._missing:
            position = self._fill(data)
            if not position:
                return
        elif self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._needed = 0
        known, opened = self._known, self._open
        end = len(data)
        while position < end:
            run = known.get(data[position : position + self._head_bytes])
            if run is None:
                after = self._frame(data, position, end)
            elif (after := position + run.size) > end:
                after = self._take_beginning(run, data, position, end)
            elif (frame := run.frame(data, position)) is None:
                after = self._frame(data, position, end)
            else:
                frames = opened.get(run.address)
                if frames is None:
                    frames = self._add(run.address, frame)
                else:
                    frames.append(frame)
                if data.startswith(run.head, after):
                    after = self._take_run(run, frames, data, after)
            if after == position:
                rest = data[position:]
                self._chunks.append(rest)
                self._held = len(rest)
                return
            position = after

    def _reply(self, reply: Reply) -> None:
        """Something that is no message; nothing moves past it."""
        self._replies.append((len(self._segments), reply))
        self._open.clear()
        self._open_others.clear()

    def _frame(self, data: bytes, position: int, end: int) -> int:
        """Take one frame; returns where it ends, or ``position`` if its lengths are not all here."""
        raise NotImplementedError

    def _meta_at(self, data: bytes, position: int) -> Meta | None:
        """The metadata behind a run's head; ``None`` if it only looks like the bus's own."""
        raise NotImplementedError

    def _run(self, address: bytes, head: bytes, fields: str) -> Run:
        """A run of this protocol."""
        return Run(address, head, fields)

    def _frames(self, run: Run, view: memoryview) -> list[Frame]:
        """The frames of a run, up to the first that is another's."""
        raise NotImplementedError

    def _complete(self, address: bytes, block: bytes, payload: bytes) -> None:
        """A message that is not the bus's own, or has a key or headers."""
        raise NotImplementedError

    def _learn(self, address: bytes, head: bytes, fields: str) -> None:
        """Remember a head that came for the second time."""
        self._head_bytes = len(head)
        if head not in self._once:
            if len(self._once) >= _LIMIT:
                self._once.clear()
            self._once.add(head)
        elif head not in self._known:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[head] = self._run(address, head, fields)

    def _take_run(self, run: Run, frames: list[Frame], data: bytes, position: int) -> int:
        """Take the frames that go on as the last one did; returns where they end."""
        after, count = position, self._run_length
        while data.startswith(run.head, after) and (count := min(count, (len(data) - after) // run.size)):
            more = self._frames(run, memoryview(data)[after : after + count * run.size])
            frames += more
            after += len(more) * run.size
            if len(more) < count:
                break
            count *= 2
        self._run_length = max(_SHORTEST, (after - position) // run.size)
        return after

    def _take_beginning(self, run: Run, data: bytes, position: int, end: int) -> int:
        body = position + run.head_bytes
        start = body + self.META_BYTES
        if start > end:
            return position
        meta = self._meta_at(data, body)
        if meta is None:
            return self._frame(data, position, end)
        return self._begin((run.address, meta, b""), data, start, position + run.size - end)

    def _add(self, address: bytes, frame: Frame) -> list[Frame]:
        frames = self._open.get(address)
        if frames is None:
            self._open_others.pop(address, None)
            frames = self._open[address] = [frame]
            self._segments.append((address, frames, _NO_OTHERS))
        else:
            frames.append(frame)
        return frames

    def _add_other(self, address: bytes, other: Other) -> None:
        others = self._open_others.get(address)
        if others is None:
            self._open.pop(address, None)
            others = self._open_others[address] = []
            self._segments.append((address, None, others))
        others.append(other)

    def _begin(self, pending: tuple[bytes, Meta | None, bytes], data: bytes, start: int, missing: int) -> int:
        """A payload begins whose end is still to come: it is joined once, when its last byte is here."""
        self._pending, self._missing = pending, missing
        self._parts.append(data[start:] if len(data) - start < _COPY_BELOW else memoryview(data)[start:])
        return len(data)

    def _fill(self, data: bytes) -> int:
        """Go on with a payload; returns where it ends, 0 if it does not."""
        missing, parts = self._missing, self._parts
        if len(data) < missing:
            parts.append(data)
            self._missing -= len(data)
            if len(parts) > _PARTS:
                parts[:] = [b"".join(parts)]
            return 0
        if missing > 2:
            parts.append(memoryview(data)[: missing - 2])
        payload = b"".join(parts)
        parts.clear()
        if missing < 2:
            payload = payload[:-1]  # the CR was here already
        self._missing = 0
        address, meta, block = self._pending
        if meta is None:
            self._complete(address, block, payload)
        else:
            session, sequence, published = meta
            self._add(address, (b"", session, sequence, published, payload))
        return missing
