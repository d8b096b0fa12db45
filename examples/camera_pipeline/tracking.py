"""Track road users: assign the boxes of successive frames to numbered tracks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from .detection import Box

_CONFIRM = 4
"""Number of frames in which an object is detected before it counts as a road user."""
_TRAVEL = 0.5
"""Smallest distance from the origin, relative to the object's size; excludes objects that do not move, such as traffic lights."""
_STRAIGHT = 0.5
"""Smallest ratio of the distance from the origin to the length of the path; excludes noise."""
_FORGET = 0.6
"""Seconds without a detection after which a track ends."""
_SHOWN = 0.15
"""Seconds without a detection for which a track is still reported, at its expected position."""
_REACH = 0.8
"""Largest distance of a box from the expected position of a track, relative to the size of both boxes."""
_SIZES = 4.0
"""Largest ratio of the areas of two boxes of one object."""


class Track(msgspec.Struct, frozen=True):
    """A road user in one frame, in pixels of the frame."""

    id: int
    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(slots=True, eq=False)
class _Candidate:
    """A detected object with a constant velocity; ``x`` and ``y`` are its center."""

    x: float
    y: float
    width: float
    height: float
    seen: float
    origin: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    hits: int = 1
    way: float = 0.0
    id: int = 0
    """Number of the track; 0 until the object is confirmed as a road user."""

    def expected(self, now: float) -> tuple[float, float]:
        ahead = now - self.seen
        return self.x + self.velocity[0] * ahead, self.y + self.velocity[1] * ahead

    def distance(self, box: Box, now: float) -> float:
        """Return the distance of the box from the expected position, 1 at the limit; infinite for another size."""
        small, large = sorted((self.width * self.height, box.width * box.height))
        if large > _SIZES * small:
            return math.inf
        reach = _REACH * (math.hypot(self.width, self.height) + math.hypot(box.width, box.height)) / 2
        return math.dist(self.expected(now), _center(box)) / reach

    def take(self, box: Box, now: float) -> None:
        center, elapsed = _center(box), now - self.seen
        moved = center[0] - self.x, center[1] - self.y
        trust = 1.0 if self.hits == 1 else 0.4
        self.velocity = tuple(v + trust * (m / elapsed - v) for v, m in zip(self.velocity, moved, strict=True))  # type: ignore[assignment]
        self.way += math.hypot(*moved)
        self.x, self.y = center
        self.width += 0.5 * (box.width - self.width)
        self.height += 0.5 * (box.height - self.height)
        self.seen = now
        self.hits += 1

    def is_road_user(self) -> bool:
        gone = math.dist(self.origin, (self.x, self.y))
        return self.hits >= _CONFIRM and gone >= max(_TRAVEL * max(self.width, self.height), _STRAIGHT * self.way)


class Tracker:
    """Tracks the boxes of one camera, in the order of its frames; frames can be missing."""

    def __init__(self) -> None:
        self._candidates: list[_Candidate] = []
        self.total = 0
        """Number of road users so far."""

    def update(self, boxes: Iterable[Box], now: float) -> list[Track]:
        """Return the tracks at ``now``, the capture time in seconds."""
        self._candidates = [each for each in self._candidates if 0 < now - each.seen <= _FORGET]
        free = dict(enumerate(boxes))
        pairs = [
            (distance, i, candidate)
            for candidate in self._candidates
            for i, box in free.items()
            if (distance := candidate.distance(box, now)) <= 1
        ]
        for _, i, candidate in sorted(pairs, key=lambda pair: pair[0]):
            if i in free and candidate.seen < now:
                candidate.take(free.pop(i), now)
        for box in free.values():
            x, y = _center(box)
            self._candidates.append(_Candidate(x, y, box.width, box.height, now, (x, y)))
        for candidate in self._candidates:
            if candidate.id == 0 and candidate.is_road_user():
                self.total += 1
                candidate.id = self.total
        return [_track(each, now) for each in self._candidates if each.id and now - each.seen <= _SHOWN]


def _track(candidate: _Candidate, now: float) -> Track:
    x, y = candidate.expected(now)
    return Track(candidate.id, x - candidate.width / 2, y - candidate.height / 2, candidate.width, candidate.height)


def _center(box: Box) -> tuple[float, float]:
    return box.x + box.width / 2, box.y + box.height / 2
