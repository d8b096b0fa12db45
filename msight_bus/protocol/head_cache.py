"""Recognise repeated frame heads, and decode runs of frames with the same head in C-level loops. Pure.

The head of a frame (channel or subject, and the lengths) is often repeated: messages of equal size on one topic have the same
head. `HeadCache` remembers heads, so that a frame with a known head is unpacked without parsing its numbers, and
`take_run` unpacks consecutive frames with the same head in one call. The head of each frame is compared.

Where sizes vary on many topics, few heads are repeated. Then the cache costs more than it saves, and is bypassed for some tens
of thousands of frames.
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

_HEADS = 4096
"""Maximum number of cached heads, and of heads seen once."""

_LONGEST_HEAD = 1024
"""Maximum bytes of a cached head: a longer one has an invalid topic, and may have any length."""

_SHORTEST = 8
"""Frames decoded in the first step of a run. The first step of a later run has the length of the last run; each further step is
twice as long."""

_MISSES = 4096
"""Misses after which hits and misses are compared. A thousand heads, each of which misses twice, are learned before."""

_PAUSE = 32_768
"""Frames decoded without the cache after misses outnumbered hits."""


class Run:
    """Frames that differ only in their metadata and payload.

    Attributes:
        address: the address of the frames.
        head: the beginning of each frame, up to the metadata.
        size: bytes of a frame.
        frame: decodes the frame at an offset of the data. The sequence is 0 if the frame is foreign.
        frames: decodes the frames between two offsets, a multiple of ``size`` apart, up to the first frame with another head or
            a foreign one.
    """

    __slots__ = ("address", "frame", "frames", "head", "size")

    def __init__(
        self,
        address: Address,
        head: bytes,
        size: int,
        frame: Callable[[bytes, int], Frame],
        frames: Callable[[bytes, int, int], list[Frame]],
    ) -> None:
        self.address = address
        self.head = head
        self.size = size
        self.frame = frame
        self.frames = frames


MakeRun = Callable[[Address, bytes, int], Run]
"""Make a run of an address, a head and the bytes of a payload."""


class HeadCache:
    """A cache of heads that were repeated.

    Attributes:
        known: runs by head.
        head_bytes: length of the head seen last; only heads of this length are found.
        hits: hits since the last comparison with the misses.
        pause: number of frames still to decode without the cache.
    """

    __slots__ = ("_make", "_misses", "_once", "_run_length", "head_bytes", "hits", "known", "pause")

    def __init__(self, make: MakeRun) -> None:
        self._make = make
        self.known: dict[bytes, Run] = {}
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
        """Cache a head of usual length when it is seen the second time."""
        if len(head) > _LONGEST_HEAD:
            return
        self.head_bytes = len(head)
        if head not in self._once:
            if len(self._once) >= _HEADS:
                self._once.clear()
            self._once.add(head)
        elif head not in self.known:
            if len(self.known) >= _HEADS:
                self.known.clear()
            self.known[head] = self._make(address, head, payload_bytes)

    def take_run(self, run: Run, frames: list[Frame], data: bytes, position: int, limit: int) -> tuple[int, int]:
        """Append at most ``limit`` frames of ``run`` from ``position`` on; return the end position and the number of frames."""
        size, after, count, taken = run.size, position, self._run_length, 0
        while data.startswith(run.head, after) and (count := min(count, limit - taken, (len(data) - after) // size)):
            more = run.frames(data, after, after + count * size)
            frames += more
            taken += len(more)
            after += len(more) * size
            if len(more) < count:
                break
            count *= 2
        self._run_length = max(_SHORTEST, taken)
        return after, taken


def leading(frames: list[Frame], head: bytes, lowest: bytes) -> list[Frame]:
    """Return the frames before the first one with another head, or with sequence 0, which is foreign.

    Args:
        frames: of one size, not empty.
        head: the expected head of all frames.
        lowest: the lowest byte of each sequence; only sequences whose lowest byte is 0 are examined.
    """
    if [frame[0] for frame in frames].count(head) < len(frames):
        frames = list(takewhile(lambda frame: frame[0] == head, frames))
    at = lowest.find(0, 0, len(frames))
    while at >= 0 and frames[at][2]:
        at = lowest.find(0, at + 1, len(frames))
    return frames if at < 0 else frames[:at]
