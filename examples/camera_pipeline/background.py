"""What the scene looks like without its road users, and which pixels are not that.

The background is the median of a few samples of the last second or so. A median forgets a passing car at
once and needs three samples to begin, where a mixture of Gaussians has to see much more: scenes that last
two seconds are usable.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike

_SAMPLES = 7
_EVERY_STILL = 0.5
_EVERY_MOVING = 0.2
"""Seconds between samples once the scene is known; closer together at its beginning. A fixed camera can look
back far enough that a person walking slowly does not become background."""
_RECENT = 0.12
"""What has changed in these seconds is moving now."""
_DIFFERENT = 22
"""Levels out of 255."""
_SHADOW = (0.55, 0.93)
"""A shadow leaves this part of the light ..."""
_SHADOW_TINT = 0.08
"""... and nearly the same part of each colour."""
_GHOST = 0.8
"""Where the picture has less than this share of the background's contrast, an outline is the background's."""
_ROUNDING = 0.01
"""Seconds: capture times are not exact multiples of the frame interval."""


@dataclass(frozen=True, slots=True)
class _Sample:
    time: float
    picture: MatLike
    seen: MatLike
    """255 where the camera saw the scene at that moment."""


class Background:
    """Fed with pictures in the scene's coordinates, in time order."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.reach = 0
        """A difference that a shift of so many pixels explains is none. Above 0 for a camera that moves."""
        self._samples: list[_Sample] = []
        self._recent: list[_Sample] = []
        self._median: MatLike | None = None

    def masks(self, picture: MatLike, seen: MatLike) -> tuple[MatLike, MatLike] | None:
        """(differs from the background, changed in the last moment); None while the background is unknown."""
        if self._median is None:
            return None
        earlier = self._recent[0]
        seen = cv2.bitwise_and(seen, self._seen)
        other = cv2.bitwise_and(_different(picture, self._median, self.reach), seen)
        _clear_shadows(other, picture, self._median)
        seen = cv2.bitwise_and(seen, earlier.seen)
        return other, cv2.bitwise_and(_different(picture, earlier.picture, self.reach), seen)

    def is_ghost(self, picture: MatLike, left: int, top: int, right: int, bottom: int) -> bool:
        """Whether the outline of this box is one of the background, so of something that has left."""
        assert self._median is not None
        rows, columns = slice(max(0, top - 3), bottom + 3), slice(max(0, left - 3), right + 3)
        return _rim(picture[rows, columns]) < _GHOST * _rim(self._median[rows, columns])

    def learn(self, time: float, picture: MatLike, seen: MatLike) -> None:
        sample = _Sample(time, picture, seen)
        self._recent.append(sample)
        while len(self._recent) > 1 and time - self._recent[1].time >= _RECENT - _ROUNDING:
            del self._recent[0]
        known = len(self._samples)
        every = _EVERY_MOVING if self.reach else _EVERY_STILL
        if known < _SAMPLES:
            every = min(every, 0.04 + 0.04 * known)
        if known and time - self._samples[-1].time < every - _ROUNDING:
            return
        self._samples = [*self._samples, sample][-_SAMPLES:]
        odd = self._samples[-(len(self._samples) - 1 | 1) :]
        if len(odd) >= 3:
            self._median = _median([sample.picture for sample in odd])
            self._seen = odd[0].seen
            for sample in odd[1:]:
                self._seen = cv2.bitwise_and(self._seen, sample.seen)


def _rim(part: MatLike) -> float:
    """Mean contrast along the rim of a part of a picture."""
    gray = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    contrast = cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    contrast[7:-7, 7:-7] = 0
    return float(contrast.mean())


def _median(pictures: list[MatLike]) -> MatLike:
    """Of an odd number: all pixels are sorted at once, many times faster than numpy's median."""
    ordered = list(pictures)
    for step in range(len(ordered)):
        for i in range(step % 2, len(ordered) - 1, 2):
            one, two = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = cv2.min(one, two), cv2.max(one, two)
    return ordered[len(ordered) // 2]


def _different(picture: MatLike, other: MatLike, reach: int) -> MatLike:
    """255 where a colour is darker or brighter than all of the other's pixels within reach."""
    if reach:
        near = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        beyond = cv2.max(cv2.subtract(picture, cv2.dilate(other, near)), cv2.subtract(cv2.erode(other, near), picture))
    else:
        beyond = cv2.absdiff(picture, other)
    blue, green, red = cv2.split(beyond)
    return cv2.threshold(cv2.max(cv2.max(blue, green), red), _DIFFERENT, 255, cv2.THRESH_BINARY)[1]


def _clear_shadows(mask: MatLike, picture: MatLike, background: MatLike) -> None:
    """Takes out pixels that are the background in less light."""
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return
    part = np.s_[y : y + height, x : x + width]
    blue, green, red = cv2.split(cv2.divide(picture[part], background[part], scale=255))
    least, most = cv2.min(cv2.min(blue, green), red), cv2.max(cv2.max(blue, green), red)
    shadow = cv2.bitwise_and(
        cv2.inRange(least, np.full(1, 255 * _SHADOW[0]), np.full(1, 255 * _SHADOW[1])),
        cv2.inRange(cv2.subtract(most, least), np.zeros(1), np.full(1, 255 * _SHADOW_TINT)),
    )
    mask[part] = cv2.bitwise_and(mask[part], cv2.bitwise_not(shadow))
