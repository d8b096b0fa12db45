"""Recognise repeated frame heads, and decode consecutive frames of one shape in C-level loops. Pure.

The head of a frame (channel or subject, and the lengths) is often repeated: messages of equal size on one topic have the same
head. `HeadCache` keeps heads, so that a frame with a kept head is unpacked without parsing its numbers, and `take_run` and
`take_series` unpack consecutive frames in one call. The head of each frame is compared.

Where sizes vary on many topics, few heads are repeated. Then the cache costs more than it saves, and is bypassed for `_PAUSE`
frames.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

Meta = tuple[int, int, int]
"""Session, sequence, publish time in nanoseconds since 1970."""

Frame = tuple[bytes, int, int, int, bytes]
"""A message of the bus without key and headers: its head (or ``b""``), its `Meta`, its payload. The sequence is never 0."""

FOREIGN: Frame = b"", 0, 0, 0, b""
"""The result for a frame that has the layout of the bus but is foreign."""

Address = bytes | tuple[bytes, bytes]
"""Redis: the channel; (pattern, channel) of a message that matched a pattern. NATS: ``<subject> <subscription id>``."""

Series = tuple[list[Address], list[Frame]]
"""Consecutive messages, in the order of the stream: the address of each one, and its frame."""

_HEADS = 4096
"""Maximum number of cached heads, of heads seen once, and of shapes."""

_LONGEST_HEAD = 1024
"""Maximum bytes of a cached head: a longer one has an invalid topic, and may have any length."""

_SHORTEST = 8
"""Frames decoded in the first step of a run or series. The first step of a later one has the length of the last one; each further
step is twice as long."""

_MISSES = 4096
"""Misses after which hits and misses are compared. A thousand heads, each of which misses twice, are learned before."""

_PAUSE = 32_768
"""Frames decoded without the cache after misses outnumbered hits."""


class Shape:
    """Frames whose heads have one length, and whose payloads have one length.

    Attributes:
        addresses: the address of each cached head of this shape.
        size: bytes of a frame.
        frame: decodes the frame at an offset of the data. The sequence is 0 if the frame is foreign.
        frames: decodes the frames between two offsets, a multiple of ``size`` apart, up to the first foreign one. The caller
            compares the heads.
    """

    __slots__ = ("addresses", "frame", "frames", "size")

    def __init__(
        self, size: int, frame: Callable[[bytes, int], Frame], frames: Callable[[bytes, int, int], list[Frame]]
    ) -> None:
        self.addresses: dict[bytes, Address] = {}
        self.size = size
        self.frame = frame
        self.frames = frames


MakeShape = Callable[[int, int], Shape]
"""Make the shape of frames by the bytes of a head and of a payload."""


class HeadCache:
    """A cache of heads that were repeated.

    Attributes:
        known: address and shape by head.
        head_bytes: length of the head seen last; only heads of this length are found.
        hits: hits since the last comparison with the misses.
        pause: number of frames still to decode without the cache.
    """

    __slots__ = ("_make", "_misses", "_once", "_run_length", "_shapes", "head_bytes", "hits", "known", "pause")

    def __init__(self, make: MakeShape) -> None:
        self._make = make
        self._shapes: dict[tuple[int, int], Shape] = {}
        self.known: dict[bytes, tuple[Address, Shape]] = {}
        self._once: set[bytes] = set()
        self.head_bytes = 0
        self.hits = 0
        self._misses = 0
        self.pause = 0
        self._run_length = _SHORTEST

    def missed(self) -> None:
        """Count a miss; bypass the cache for `_PAUSE` frames if misses outnumber hits."""
        self._misses += 1
        if self._misses == _MISSES:
            if self.hits < _MISSES:
                self.pause = _PAUSE
            self.hits = self._misses = 0

    def learn(self, address: Address, head: bytes, payload_bytes: int) -> None:
        """Cache a head of usual length: of a known shape at once, else when it is seen the second time."""
        if len(head) > _LONGEST_HEAD:
            return
        self.head_bytes = len(head)
        if head in self.known:
            return
        lengths = len(head), payload_bytes
        shape = self._shapes.get(lengths)
        if shape is None:
            if head not in self._once:
                if len(self._once) >= _HEADS:
                    self._once.clear()
                self._once.add(head)
                return
            shape = self._make(*lengths)
        if len(self.known) >= _HEADS:
            self.known.clear()
            self._shapes.clear()
            shape.addresses.clear()
        self._shapes[lengths] = shape
        shape.addresses[head] = address
        self.known[head] = address, shape

    def take_run(self, shape: Shape, frames: list[Frame], data: bytes, position: int, limit: int) -> tuple[int, int]:
        """Append at most ``limit`` frames with the head of the last one; return the end position and their number."""
        size, after, count, taken = shape.size, position, self._run_length, 0
        head = frames[-1][0]
        while data.startswith(head, after) and (count := min(count, limit - taken, (len(data) - after) // size)):
            more = shape.frames(data, after, after + count * size)
            if [frame[0] for frame in more].count(head) < len(more):
                more = list(takewhile(lambda frame: frame[0] == head, more))
            frames += more
            taken += len(more)
            after += len(more) * size
            if len(more) < count:
                break
            count *= 2
        self._run_length = max(_SHORTEST, taken)
        return after, taken

    def take_series(self, shape: Shape, series: Series, data: bytes, position: int, limit: int) -> tuple[int, int]:
        """Append at most ``limit`` frames of ``shape`` and of any address; return the end position and their number."""
        addresses, frames = series
        size, after, count, taken = shape.size, position, self._run_length, 0
        address_of, head_bytes = shape.addresses, self.head_bytes
        while (count := min(count, limit - taken, (len(data) - after) // size)) and (
            data[after : after + head_bytes] in address_of  # else the step would decode in vain
        ):
            more = shape.frames(data, after, after + count * size)
            try:
                found = [address_of[frame[0]] for frame in more]
            except KeyError:
                more = list(takewhile(lambda frame: frame[0] in address_of, more))
                found = [address_of[frame[0]] for frame in more]
            addresses += found
            frames += more
            taken += len(more)
            after += len(more) * size
            if len(more) < count:
                break
            count *= 2
        self._run_length = max(_SHORTEST, taken)
        return after, taken


def before_foreign(frames: list[Frame], lowest: bytes) -> list[Frame]:
    """Return the frames before the first one with sequence 0, which is foreign.

    Args:
        frames: consecutive frames.
        lowest: the lowest byte of each sequence; only sequences whose lowest byte is 0 are examined.
    """
    at = lowest.find(0, 0, len(frames))
    while at >= 0 and frames[at][2]:
        at = lowest.find(0, at + 1, len(frames))
    return frames if at < 0 else frames[:at]
