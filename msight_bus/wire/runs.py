"""Runs of equal frames: a stream's frames mostly have one size, so a chunk of them is taken by one C-level loop. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator

LARGEST = 16 * 1024
"""Frames over this many bytes come one or two a chunk; there is nothing to gain."""


class Run:
    """Frames that differ only in their metadata and payload.

    The head holds the lengths, so a frame whose head is equal has the same layout. It is compared for every frame: nothing
    is taken on trust from the frame before.

    Attributes:
        head: how each frame begins.
        size: bytes of a frame.
    """

    __slots__ = ("_unpack", "head", "size")

    def __init__(self, head: bytes, fields: str) -> None:
        """``fields`` is the `struct` layout behind the head."""
        layout = struct.Struct(f">{len(head)}s{fields}")
        self.head = head
        self.size = layout.size
        self._unpack = layout.iter_unpack

    def frames(self, data: bytes, position: int) -> Iterator[tuple[bytes, ...]]:
        """The head and the fields of each whole frame of this size from ``position`` on, whatever it holds."""
        whole = (len(data) - position) // self.size
        return self._unpack(memoryview(data)[position : position + whole * self.size])


class Runs:
    """Remembers the runs of a connection, in bounded memory."""

    __slots__ = ("_known", "_last")

    _LIMIT = 1024

    def __init__(self) -> None:
        self._known: dict[bytes, Run] = {}
        self._last = b""

    def seen(self, head: bytes, fields: str) -> Run | None:
        """A frame came that begins with ``head``: its run, if it is the second in succession."""
        if head != self._last:
            self._last = head
            return None
        run = self._known.get(head)
        if run is None:
            if len(self._known) >= self._LIMIT:
                self._known.clear()
            run = self._known[head] = Run(head, fields)
        return run
