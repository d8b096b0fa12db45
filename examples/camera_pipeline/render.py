"""Draws the tracks onto their frames, and writes the annotated frames as a clip."""

from collections import deque
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from cv2.typing import MatLike

from .pictures import FootageError
from .tracking import Tracked

FONT = cv2.FONT_HERSHEY_SIMPLEX
_COLORS = (  # BGR, easy to tell apart on asphalt
    (60, 180, 255), (240, 200, 40), (120, 230, 90), (200, 110, 255), (70, 240, 250), (255, 150, 90),
    (90, 110, 255), (210, 240, 120), (250, 130, 210), (140, 200, 160),
)  # fmt: skip
_DARK = (28, 24, 22)
_LIGHT = (245, 245, 245)
_STRIP = 34
"""Height of the caption, in pixels."""
_TRAIL = 40
"""Positions."""
_WIDTHS = (960, 1280)
"""Narrower frames are drawn larger, wider ones smaller."""
_CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))


class ClipUnwritableError(FootageError):
    """No codec of this OpenCV can write a clip here."""


def color(track_id: int) -> tuple[int, int, int]:
    return _COLORS[track_id % len(_COLORS)]


class Annotator:
    """Keeps the trails; wants each frame once, in order."""

    def __init__(self) -> None:
        self._trails: dict[int, deque[tuple[float, float]]] = {}

    def draw(self, picture: MatLike, tracked: Tracked, caption: str) -> MatLike:
        """A new picture: boxes, numbers, trails, and the caption (ASCII) in a strip below."""
        self._follow(tracked)
        width = min(max(tracked.width, _WIDTHS[0]), _WIDTHS[1])
        scale = width / tracked.width
        height = round(tracked.height * scale / 2) * 2
        size = (width, height)
        method = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_CUBIC
        frame = picture.copy() if size == picture.shape[1::-1] else cv2.resize(picture, size, interpolation=method)
        for track in tracked.tracks:
            draw_trail(frame, list(self._trails[track.id]), scale, color(track.id))
        for track in tracked.tracks:
            corner = (round(track.x * scale), round(track.y * scale))
            opposite = (round((track.x + track.width) * scale), round((track.y + track.height) * scale))
            _draw_box(frame, corner, opposite, str(track.id), color(track.id))
        return np.vstack([frame, _strip(width, caption)])

    def _follow(self, tracked: Tracked) -> None:
        here = {track.id: track.center for track in tracked.tracks}
        self._trails = {number: trail for number, trail in self._trails.items() if number in here}
        for number, center in here.items():
            self._trails.setdefault(number, deque(maxlen=_TRAIL)).append(center)


def draw_trail(picture: MatLike, centers: list[tuple[float, float]], scale: float, ink: tuple[int, int, int]) -> None:
    """Thicker towards the newest center."""
    points = np.round(np.array(centers, np.float64).reshape(-1, 2) * scale).astype(int).tolist()
    for i, (one, two) in enumerate(pairwise(points), 1):
        cv2.line(picture, one, two, ink, 1 + round(2 * i / len(points)), cv2.LINE_AA)


def _draw_box(
    picture: MatLike,
    corner: tuple[int, int],
    opposite: tuple[int, int],
    label: str,
    ink: tuple[int, int, int],
) -> None:
    left, top = max(corner[0], 0), max(corner[1], 0)
    inside = picture[top : max(opposite[1], 0), left : max(opposite[0], 0)]
    if inside.size:
        inside[:] = cv2.addWeighted(inside, 0.85, np.full_like(inside, ink), 0.15, 0)
    cv2.rectangle(picture, corner, opposite, ink, 2, cv2.LINE_AA)
    (width, height), _ = cv2.getTextSize(label, FONT, 0.5, 1)
    bottom = top if top > height + 8 else top + height + 8
    left = min(left, picture.shape[1] - width - 10)
    cv2.rectangle(picture, (left - 1, bottom - height - 8), (left + width + 9, bottom), ink, cv2.FILLED)
    cv2.putText(picture, label, (left + 4, bottom - 4), FONT, 0.5, _DARK, 1, cv2.LINE_AA)


def _strip(width: int, caption: str) -> MatLike:
    strip = np.full((_STRIP, width, 3), _DARK, np.uint8)
    cv2.putText(strip, caption, (12, _STRIP - 11), FONT, 0.55, _LIGHT, 1, cv2.LINE_AA)
    return strip


class ClipWriter:
    """Writes pictures of one size as a clip; `path` says where it ended up, with the suffix of its format."""

    def __init__(self, path: Path, rate: float) -> None:
        self._wanted = path
        self._rate = rate
        self._video: cv2.VideoWriter | None = None
        self.path: Path | None = None
        """None before the first picture."""

    def write(self, picture: MatLike) -> None:
        if self._video is None:
            self._video = self._open((picture.shape[1], picture.shape[0]))
        self._video.write(picture)

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        self._wanted.parent.mkdir(parents=True, exist_ok=True)
        for codec, suffix in _CODECS:
            path = self._wanted.with_suffix(suffix)
            video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), self._rate, size)
            if video.isOpened():
                self.path = path
                return video
        raise ClipUnwritableError(
            f"OpenCV {cv2.__version__} can write neither MPEG-4 nor Motion JPEG to {self._wanted.parent}; "
            "is the folder writable? The wheels of opencv-python-headless can do both"
        )

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
