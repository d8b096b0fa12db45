"""Detect moving objects in the pictures of a fixed camera.

A pixel whose value has not changed for one second becomes background. A region that differs from the background shows an object
that has arrived, or the place of an object that was background and has left. In the first case, the region differs from its
surroundings in the picture; in the second, in the background.
"""

import cv2
import msgspec
import numpy as np
from cv2.typing import MatLike

from .footage import Frame
from .pictures import decode

_WIDTH = 960
"""Width in pixels to which wider pictures are scaled down."""
_LEVELS = 20
"""Smallest difference, of 255, that is not noise."""
_SETTLED = 1.0
"""Seconds without a change, after which a pixel is background."""
_DRIFT = 0.1
"""Weight of each frame with which the background follows slow changes of the light."""
_SCENE = 0.5
"""Share of differing pixels above which the camera has moved, or a new scene has started."""
_NEAR = np.ones((7, 7), np.uint8)
"""Pixels that belong together."""
_SMALLEST = 12
"""Pixels."""
_SURROUNDINGS = 12
"""Pixels around a blob."""


class Box(msgspec.Struct, frozen=True):
    """A box in pixels of the frame."""

    x: float
    y: float
    width: float
    height: float


class Detector:
    """Detects moving objects of one camera; needs all frames in order, because the background depends on earlier frames."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None

    def detect(self, frame: Frame) -> list[Box]:
        """Return the boxes of the moving objects in the frame."""
        picture = decode(frame.jpeg)
        shrink = max(1.0, picture.shape[1] / _WIDTH)
        if shrink > 1:
            picture = cv2.resize(picture, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (3, 3), 0)
        if grey.shape != self._shape:
            self._begin(grey, frame.captured)
        now = frame.captured - self._began
        changed = _differing(grey, self._last)
        cv2.copyTo(grey, changed, self._last)
        self._changed_at[changed > 0] = now
        background = self._background.astype(np.uint8)
        differs = _differing(grey, background)
        if cv2.countNonZero(differs) > _SCENE * differs.size:
            self._begin(grey, frame.captured)
            return []
        boxes, moving = _find(grey, background, differs, changed)
        self._changed_at[moving > 0] = now  # even inside an object of one colour
        self._learn(grey, differs, now)
        return [Box(*(n * shrink for n in box)) for box in boxes]

    def _begin(self, grey: MatLike, captured: float) -> None:
        """Use the first picture as background."""
        self._shape = grey.shape
        self._began = captured
        self._background = grey.astype(np.float32)
        self._last = grey.copy()
        self._changed_at = np.full(grey.shape, -_SETTLED, np.float32)

    def _learn(self, grey: MatLike, differs: MatLike, now: float) -> None:
        """Add settled pixels to the background, and adapt background pixels slowly."""
        follow = np.where(differs > 0, np.float32(1), np.float32(_DRIFT)) * (self._changed_at <= now - _SETTLED)
        self._background += follow * (grey - self._background)


def _find(
    grey: MatLike, background: MatLike, differs: MatLike, changed: MatLike
) -> tuple[list[tuple[int, int, int, int]], MatLike]:
    """Return left, top, width and height of each object, and a mask that is 255 where an object moves."""
    blobs, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(differs, cv2.MORPH_CLOSE, _NEAR))
    boxes, moving = [], np.zeros_like(grey)
    for blob in range(1, blobs):
        left, top, width, height, area = (int(n) for n in stats[blob])
        if area < _SMALLEST:
            continue
        x, y = max(0, left - _SURROUNDINGS), max(0, top - _SURROUNDINGS)
        part = np.s_[y : top + height + _SURROUNDINGS, x : left + width + _SURROUNDINGS]
        present = _present(grey[part], background[part], differs[part])
        present = cv2.medianBlur(cv2.bitwise_and(present, differs[part]) * (labels[part] == blob), 3)
        if cv2.countNonZero(present) >= _SMALLEST:
            within_x, within_y, width, height = cv2.boundingRect(present)
            boxes.append((x + within_x, y + within_y, width, height))
            if cv2.countNonZero(cv2.bitwise_and(present, changed[part])) >= _SMALLEST:
                moving[part] = cv2.bitwise_or(moving[part], present)
    return boxes, moving


def _differing(one: MatLike, two: MatLike) -> MatLike:
    """Return a mask that is 255 where two pictures differ by more than noise."""
    return cv2.threshold(cv2.absdiff(one, two), _LEVELS, 255, cv2.THRESH_BINARY)[1]


def _present(grey: MatLike, background: MatLike, differs: MatLike) -> MatLike:
    """Return a mask that is 255 where the picture differs more from its surroundings than the background does."""
    surroundings = cv2.inpaint(grey, cv2.dilate(differs, np.ones((5, 5), np.uint8)), 3, cv2.INPAINT_TELEA)
    return cv2.compare(cv2.absdiff(grey, surroundings), cv2.absdiff(background, surroundings), cv2.CMP_GT)
