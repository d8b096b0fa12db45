"""Frames of one or more cameras: the included Mcity cameras, a folder of JPEGs, or a video.

Frames are published as JPEG, not as decoded pictures. JPEG files are published unchanged.
"""

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import msgspec

from .pictures import FootageError, decode, encode

RATE = 10.0
_MCITY = Path(__file__).parent / "mcity"
_MCITY_STARTS = {"ne": "2023-10-13 16-46-53-100580", "sw": "2023-10-13 16-46-53-070417"}
_NAME_FORMAT = "%Y-%m-%d %H-%M-%S-%f"
_JPEGS = {".jpg", ".jpeg"}
_log = logging.getLogger(__name__)


class Frame(msgspec.Struct, frozen=True):
    """One picture of one camera."""

    camera: str
    index: int
    """Number of the frame, from 0."""
    captured: float
    """Capture time in POSIX seconds; seconds from 0 if the footage has no capture times."""
    jpeg: bytes


def cameras(path: Path | None = None, rate: float = RATE) -> dict[str, Iterator[Frame]]:
    """Return the frames of each camera, in order.

    Args:
        path: a video; a folder of JPEGs, for one camera; or a folder of such folders and videos, one per camera. Default: the
            two Mcity cameras.
        rate: frames a second of JPEGs whose names are not all capture times.

    Raises:
        FootageError: there is no footage at ``path``, or ``rate`` is not above 0.
    """
    if not 0 < rate < math.inf:
        raise FootageError(f"rate must be a number of frames a second above 0, for example RATE=10, not {rate}.")
    if path is None:
        return {name: _video(name, _MCITY / f"{name}.webm", _time(start)) for name, start in _MCITY_STARTS.items()}
    if path.is_dir() and not _jpegs(path):
        found = {_camera(each): each for each in sorted(path.iterdir()) if each.is_file() or _jpegs(each)}
    else:
        found = {_camera(path): path}
    footage = {name: _frames(name, each, rate) for name, each in found.items() if each.is_dir() or _is_video(each)}
    if not footage:
        what = (
            "has no .jpg file, no folder of them and no video" if path.is_dir() else "is neither a folder nor a video"
        )
        raise FootageError(f"{path} {what} that OpenCV can read. Set FRAMES=<folder or video>.")
    if skipped := [each.name for name, each in found.items() if name not in footage]:
        _log.warning("Skipped, no footage that OpenCV can read: %s", ", ".join(skipped))
    return footage


async def paced(frames: Iterator[Frame]) -> AsyncIterator[Frame]:
    """Yield each frame at its capture time, relative to the first frame. Overdue frames are yielded at once."""
    loop = asyncio.get_running_loop()
    began: float | None = None
    while (frame := await asyncio.to_thread(next, frames, None)) is not None:
        if began is None:
            began = loop.time() - frame.captured
        await asyncio.sleep(began + frame.captured - loop.time())
        yield frame


def _frames(camera: str, path: Path, rate: float) -> Iterator[Frame]:
    return _folder(camera, path, rate) if path.is_dir() else _video(camera, path, 0.0)


def _folder(camera: str, path: Path, rate: float) -> Iterator[Frame]:
    files = _jpegs(path)
    try:
        times = [_time(file.stem) for file in files]
    except ValueError:
        times = [index / rate for index in range(len(files))]
    for index, (captured, file) in enumerate(zip(times, files, strict=True)):
        jpeg = file.read_bytes()
        if not jpeg.startswith(b"\xff\xd8"):
            raise FootageError(f"{file} is not a JPEG ({len(jpeg)} bytes). Remove the file.")
        try:
            decode(jpeg, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        except FootageError as error:
            raise FootageError(f"{file}: {error}. Remove the file.") from None
        yield Frame(camera, index, captured, jpeg)


def _video(camera: str, path: Path, start: float) -> Iterator[Frame]:
    video = cv2.VideoCapture(str(path))
    interval = 1 / (video.get(cv2.CAP_PROP_FPS) or RATE)
    index, elapsed = 0, -interval
    while (read := video.read())[0]:
        stamp = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        elapsed = stamp if stamp > elapsed else elapsed + interval  # some formats have no time stamps
        yield Frame(camera, index, start + elapsed, encode(read[1]))
        index += 1


def _jpegs(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("*") if file.suffix.lower() in _JPEGS)


def _is_video(path: Path) -> bool:
    """Return whether OpenCV can read a first frame. A picture is no video, although OpenCV opens it as one."""
    if not path.is_file() or path.suffix.lower() in _JPEGS or cv2.haveImageReader(str(path)):
        return False
    return cv2.VideoCapture(str(path)).grab()


def _camera(path: Path) -> str:
    """Return a camera name that can be part of a topic."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", (path.resolve().stem if path.is_file() else path.resolve().name))[:60]


def _time(name: str) -> float:
    """Return POSIX seconds of a capture time like '2023-10-13 16-46-53-100580', in UTC."""
    return datetime.strptime(name, _NAME_FORMAT).replace(tzinfo=UTC).timestamp()
