"""Boxes of successive frames joined to numbered tracks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from .detection import Box, Detections

_CONFIRM = 4
_CONFIRM_AFTER = 0.12
"""Frames in which, and seconds for which, something must be found before it counts as a road user."""
_TRAVEL = 0.003
_TRAVEL_OWN = 0.15
"""It must have gone this share of the frame's width and of its own size: a traffic light only changes."""
_STRAIGHT = 0.5
"""And this share of its way must have led away from where it began: noise jumps about."""
_FORGET = 0.6
"""Seconds without being found."""
_SHOWN = 0.15
"""Seconds for which a track that was not found is still reported where it should be."""
_ROUNDING = 0.01
"""Seconds: capture times are not exact multiples of the frame interval."""
_OVERLAP = 0.2
_REACH = 0.01
"""Share of the frame's width that a box may miss its expected place by, on top of its own size."""
_SIZES = 4.0
"""One object does not become so many times larger between two frames."""
_CUT_ECHO = 0.5
"""Seconds in which a second worker may report the same cut again."""


class TrackedBox(msgspec.Struct, frozen=True):
    """In pixels of the frame as it was captured."""

    id: int
    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


class Tracked(msgspec.Struct, frozen=True):
    """The road users in one frame."""

    index: int
    captured: float
    sensor: str
    width: int
    height: int
    tracks: tuple[TrackedBox, ...]
    total: int
    """Different road users so far, this frame included."""
    cut: bool = False


@dataclass(slots=True, eq=False)
class _Track:
    x: float
    """Of the center, as y."""
    y: float
    width: float
    height: float
    seen: float
    origin: tuple[float, float] = field(init=False)
    born: float = field(init=False)
    speed: tuple[float, float] = (0.0, 0.0)
    hits: int = 1
    way: float = 0.0
    id: int = 0
    """0 until it is confirmed."""

    def __post_init__(self) -> None:
        self.origin, self.born = (self.x, self.y), self.seen

    def at(self, time: float) -> Box:
        """Where it should be."""
        ahead = time - self.seen
        x, y = self.x + self.speed[0] * ahead, self.y + self.speed[1] * ahead
        return Box(x - self.width / 2, y - self.height / 2, self.width, self.height, 1.0)

    def found(self, box: Box, time: float) -> None:
        ahead = max(time - self.seen, 1e-3)
        x, y = box.x + box.width / 2, box.y + box.height / 2
        new = ((x - self.x) / ahead, (y - self.y) / ahead)
        trust = 1.0 if self.hits == 1 else 0.4
        self.speed = (
            self.speed[0] + trust * (new[0] - self.speed[0]),
            self.speed[1] + trust * (new[1] - self.speed[1]),
        )
        self.way += math.dist((self.x, self.y), (x, y))
        self.x, self.y, self.seen = x, y, time
        self.width += 0.5 * (box.width - self.width)
        self.height += 0.5 * (box.height - self.height)
        self.hits += 1

    def convinces(self, frame_width: int) -> bool:
        gone = math.dist(self.origin, (self.x, self.y))
        least = max(_TRAVEL * frame_width, _TRAVEL_OWN * min(self.width, self.height), _STRAIGHT * self.way)
        return self.hits >= _CONFIRM and self.seen - self.born >= _CONFIRM_AFTER - _ROUNDING and gone >= least


class Tracker:
    """For the detections of one camera, in frame order; holes are no harm."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._cut = -math.inf
        self.total = 0

    def update(self, found: Detections) -> Tracked:
        now = found.captured
        cut = found.cut and now - self._cut > _CUT_ECHO
        if cut:
            self._tracks, self._cut = [], now
        self._tracks = [track for track in self._tracks if 0 <= now - track.seen <= _FORGET + _ROUNDING]
        boxes = self._match(list(found.boxes), now, _overlap, _OVERLAP)
        near = _REACH * found.width
        boxes = self._match(boxes, now, lambda one, two: _closeness(one, two, near), 0.0)
        for box in boxes:
            x, y = box.x + box.width / 2, box.y + box.height / 2
            self._tracks.append(_Track(x, y, box.width, box.height, now))
        for track in self._tracks:
            if track.id == 0 and track.convinces(found.width):
                self.total += 1
                track.id = self.total
        shown = tuple(
            TrackedBox(track.id, place.x, place.y, place.width, place.height)
            for track in self._tracks
            if track.id and now - track.seen <= _SHOWN
            for place in [track.at(now)]
        )
        return Tracked(found.index, now, found.sensor, found.width, found.height, shown, self.total, cut)

    def _match(self, boxes: list[Box], now: float, likeness: Callable[[Box, Box], float], least: float) -> list[Box]:
        """Gives the tracks not found yet their most alike boxes, best pairs first; returns the boxes left."""
        pairs = [
            (likeness(track.at(now), box), i, track)
            for track in self._tracks
            if track.seen < now
            for i, box in enumerate(boxes)
        ]
        taken: set[int] = set()
        for alike, i, track in sorted(pairs, key=lambda pair: -pair[0]):
            if alike > least and i not in taken and track.seen < now:
                taken.add(i)
                track.found(boxes[i], now)
        return [box for i, box in enumerate(boxes) if i not in taken]


def _overlap(one: Box, two: Box) -> float:
    """Of two boxes: what they share of what they cover."""
    width = min(one.x + one.width, two.x + two.width) - max(one.x, two.x)
    height = min(one.y + one.height, two.y + two.height) - max(one.y, two.y)
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one.width * one.height + two.width * two.height - shared)


def _closeness(one: Box, two: Box, near: float) -> float:
    """1 at the same center, 0 at the limit and below 0 beyond it or when the sizes do not go together."""
    sizes = sorted((one.width * one.height, two.width * two.height))
    if sizes[1] > _SIZES * sizes[0]:
        return -1.0
    apart = math.hypot(one.x + one.width / 2 - two.x - two.width / 2, one.y + one.height / 2 - two.y - two.height / 2)
    return 1.0 - apart / (near + 0.7 * math.hypot(one.width, one.height))
