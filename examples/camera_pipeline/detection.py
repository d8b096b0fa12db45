"""Boxes around what moves: the background taken away, shadows and noise removed, pieces put together."""

import math

import cv2
import msgspec
import numpy as np
from cv2.typing import MatLike

from .background import Background
from .blobs import Blob, find_blobs
from .camera_motion import STILL, CameraMotion
from .footage import Frame
from .pictures import decode

_WIDTH = 640
_CUT = 0.5
"""When this share of the picture has changed, it is another scene."""
_CUT_LEVELS = 25
_GAP = 2.0
"""Seconds without a frame, or back in time, after which the background is of no use."""
_DRIFT = 0.2
"""When the camera has turned away by this share of the width, the scene starts afresh."""
_JERK = 0.015
"""When it moved by this share between two frames, or seems to, the background is learned again."""


class Box(msgspec.Struct, frozen=True):
    """In pixels of the frame as it was captured."""

    x: float
    y: float
    width: float
    height: float
    score: float
    """How much of it is moving, 0 to 1."""


class Detections(msgspec.Struct, frozen=True):
    """What one frame shows."""

    index: int
    captured: float
    sensor: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    cut: bool = False
    """The scene changed here: what was tracked before is gone."""


class Detector:
    """For the frames of one camera. It need not get all of them: workers can share. A frame that comes a
    little late is searched like the others, only not learned from.
    """

    def __init__(self) -> None:
        self._camera = CameraMotion()
        self._background = Background()
        self._thumbnail: MatLike | None = None
        self._time = -math.inf
        self._to_scene: MatLike = STILL

    def detect(self, frame: Frame) -> Detections:
        picture, shrink = decode(frame.jpeg, max_width=_WIDTH)
        boxes, cut = self.find(picture, frame.captured)
        original = tuple(Box(b.x * shrink, b.y * shrink, b.width * shrink, b.height * shrink, b.score) for b in boxes)
        height, width = picture.shape[:2]
        return Detections(frame.index, frame.captured, frame.sensor, width * shrink, height * shrink, original, cut)

    def find(self, picture: MatLike, captured: float) -> tuple[list[Box], bool]:
        """The boxes in this picture's pixels, and whether another scene begins with it."""
        height, width = picture.shape[:2]
        half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        gray = cv2.cvtColor(half, cv2.COLOR_BGR2GRAY)
        late = captured < self._time
        cut = self._another_scene(gray, captured)
        if cut:
            self._reset()
        to_scene = self._camera.to_scene(gray).copy()
        to_scene[:2, 2] *= 2
        drift = _drift(to_scene, width, height)
        if drift > _DRIFT * width:
            self._reset()
            to_scene, drift = self._camera.to_scene(gray), 0.0
        elif _drift(to_scene @ np.linalg.inv(self._to_scene), width, height) > _JERK * width:
            self._background.reset()
        self._to_scene = to_scene
        scene, seen = cv2.blur(picture, (3, 3)), np.full((height, width), 255, np.uint8)
        if drift > 0.3:
            self._background.reach = 1
            scene, seen = _into_scene(scene, seen, to_scene)
        boxes = self._boxes(scene, seen, np.linalg.inv(to_scene))
        if cut or not late:
            self._background.learn(captured, scene, seen)
        return boxes, cut

    def _boxes(self, scene: MatLike, seen: MatLike, to_picture: MatLike) -> list[Box]:
        masks = self._background.masks(scene, seen)
        if masks is None:
            return []
        blobs = find_blobs(*masks, moving_camera=self._background.reach > 0)
        height, width = scene.shape[:2]
        boxes = [
            _box(blob, to_picture, width, height)
            for blob in blobs
            if not self._background.is_ghost(scene, blob.left, blob.top, blob.right, blob.bottom)
        ]
        return [box for box in boxes if box.width >= 1 and box.height >= 1]

    def _another_scene(self, gray: MatLike, captured: float) -> bool:
        thumbnail = cv2.resize(gray, (gray.shape[1] // 8, gray.shape[0] // 8), interpolation=cv2.INTER_AREA)
        before, self._thumbnail = self._thumbnail, thumbnail
        elapsed, self._time = captured - self._time, max(captured, self._time)
        if before is None:
            return False
        if before.shape != thumbnail.shape or abs(elapsed) > _GAP:
            self._time = captured
            return True
        return int((cv2.absdiff(before, thumbnail) > _CUT_LEVELS).sum()) > _CUT * thumbnail.size

    def _reset(self) -> None:
        self._camera.reset()
        self._to_scene = STILL
        self._background.reset()


def _drift(to_scene: MatLike, width: int, height: int) -> float:
    """How far the corner that has moved most has moved, in pixels."""
    corners = np.array([[[0, 0]], [[width, 0]], [[0, height]], [[width, height]]], np.float32)
    return float(np.abs(cv2.transform(corners, to_scene[:2]) - corners).max())


def _into_scene(picture: MatLike, seen: MatLike, to_scene: MatLike) -> tuple[MatLike, MatLike]:
    size = (picture.shape[1], picture.shape[0])
    moved = cv2.warpAffine(picture, to_scene[:2], size, borderMode=cv2.BORDER_REPLICATE)
    return moved, cv2.erode(cv2.warpAffine(seen, to_scene[:2], size), np.ones((9, 9), np.uint8))


def _box(blob: Blob, to_picture: MatLike, width: int, height: int) -> Box:
    corners = np.array([[[blob.left, blob.top]], [[blob.right, blob.bottom]]], np.float32)
    moved = cv2.transform(corners, to_picture[:2]).reshape(2, 2)
    (left, top), (right, bottom) = np.clip(moved, 0, (width, height)).tolist()
    return Box(left, top, right - left, bottom - top, min(1.0, blob.moved / blob.area))
