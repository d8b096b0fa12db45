"""From masks to blobs: connected pixels that are not background and are moving, pieces put together."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike

_LARGEST = 0.6
"""Of the picture: what covers more is too close to tell."""
_FRAGMENT = 0.03
"""Smaller than this share of the largest: a piece of it, or noise."""
_MARGIN = 2
"""Pixels around the part that moved."""
_SOME = 0.02
"""Share of a blob: less is noise."""
_FILLED = 0.2
"""A box holds at least this share of pixels that differ."""
_SNUG = 1.35
"""Near pieces are one object if the box around both is not larger than the two by more than this factor."""


@dataclass(frozen=True, slots=True)
class _Limits:
    smallest: float
    """Share of the picture."""
    noise: int
    holes: int
    """Pixels: specks of this size go, gaps of this size close."""
    near: float
    """Share of the picture's width: pieces closer than this may be one object."""
    moved: float
    """Share of a blob that must have changed just now: a place that something has left does not change."""
    ends: float
    """Or changes must reach over this share of its box: a lorry of one colour changes at its ends only."""
    most: float
    """More at once are not road users."""


_STILL = _Limits(smallest=5e-5, noise=2, holes=7, near=0.012, moved=0.25, ends=0.8, most=math.inf)
_MOVING = _Limits(smallest=2e-3, noise=3, holes=15, near=0.02, moved=0.3, ends=math.inf, most=10)
"""A camera that moves shifts near things against far ones: small and many differences are its own doing."""


@dataclass(frozen=True, slots=True)
class Blob:
    left: int
    top: int
    right: int
    bottom: int
    area: int
    moved: int

    @property
    def size(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)


def find_blobs(other: MatLike, moved: MatLike, *, moving_camera: bool) -> list[Blob]:
    """The road users in two masks: what differs from the background, and what changed just now."""
    limits = _MOVING if moving_camera else _STILL
    blobs = _join(_connected(other, moved, limits), round(limits.near * other.shape[1]))
    largest = max((blob.area for blob in blobs), default=0)
    blobs = [
        blob
        for blob in blobs
        if blob.area >= max(_FRAGMENT * largest, _FILLED * blob.size) and blob.size <= _LARGEST * other.size
    ]
    return blobs if len(blobs) <= limits.most else []


def _connected(other: MatLike, moved: MatLike, limits: _Limits) -> list[Blob]:
    """Connected pixels of which enough have moved, cut down to the part that did."""
    mask = cv2.morphologyEx(other, cv2.MORPH_OPEN, np.ones((limits.noise, limits.noise), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((limits.holes, limits.holes), np.uint8))
    near = cv2.dilate(moved, np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    found = []
    for label in np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= limits.smallest * mask.size):
        x, y, width, height, area = (int(n) for n in stats[label])
        if label == 0:  # the background
            continue
        part = np.s_[y : y + height, x : x + width]
        inside = labels[part] == label
        count = int((inside & (moved[part] > 0)).sum())
        left, top, wide, high = cv2.boundingRect((inside & (near[part] > 0)).astype(np.uint8))
        both_ends = wide * high >= limits.ends * width * height and count >= _SOME * area
        if count >= limits.moved * area or both_ends:
            area = int(inside[top : top + high, left : left + wide].sum())
            found.append(Blob(x + left, y + top, x + left + wide, y + top + high, area, count))
    return found


def _join(blobs: list[Blob], near: int) -> list[Blob]:
    """Puts the pieces of an object together."""
    joined: list[Blob] = []
    pending = list(blobs)
    while pending:
        blob = pending.pop()
        for other in joined:
            both = _around(blob, other)
            apart = max(
                both.right - both.left - (blob.right - blob.left) - (other.right - other.left),
                both.bottom - both.top - (blob.bottom - blob.top) - (other.bottom - other.top),
            )
            if apart < near and both.size <= _SNUG * (blob.size + other.size):
                joined.remove(other)
                pending.append(both)
                break
        else:
            joined.append(blob)
    return joined


def _around(one: Blob, two: Blob) -> Blob:
    return Blob(
        min(one.left, two.left),
        min(one.top, two.top),
        max(one.right, two.right),
        max(one.bottom, two.bottom),
        one.area + two.area,
        one.moved + two.moved,
    )
