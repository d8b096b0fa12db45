"""JPEG bytes to pictures and back. A picture is a BGR array of height x width x 3 bytes."""

import cv2
import numpy as np
from cv2.typing import MatLike

_DECODE = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_NO_SIZE = {0xC4, 0xC8, 0xCC}
"""Markers in the range of the frame headers that are something else."""


class FootageError(Exception):
    """Root of what can be wrong with the footage. The message says what to do."""


class UnreadableFrameError(FootageError):
    """Bytes that should be a picture are not."""


def encode(picture: MatLike, quality: int) -> bytes:
    done, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise UnreadableFrameError(f"OpenCV cannot write an array of shape {picture.shape} as JPEG")
    return jpeg.tobytes()


def decode(jpeg: bytes, *, max_width: int | None = None) -> tuple[MatLike, int]:
    """The picture, and how many times smaller than the original it is: 1, 2, 4 or 8.

    A JPEG decodes at a half, a quarter or an eighth for a fraction of the work. `max_width` picks the
    largest of these that is not wider.
    """
    shrink = 1
    if max_width is not None:
        width, _ = jpeg_size(jpeg)
        while shrink < 8 and width > max_width * shrink:
            shrink *= 2
    data = np.frombuffer(jpeg, np.uint8)
    picture = cv2.imdecode(data, _DECODE[shrink] | cv2.IMREAD_IGNORE_ORIENTATION) if len(data) else None
    if picture is None:
        raise UnreadableFrameError(f"these {len(jpeg)} bytes do not decode as a JPEG")
    return picture, shrink


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height from the header, without decoding."""
    at = 2
    while jpeg[:2] == b"\xff\xd8" and at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            height = int.from_bytes(jpeg[at + 5 : at + 7], "big")
            return int.from_bytes(jpeg[at + 7 : at + 9], "big"), height
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise UnreadableFrameError(f"these {len(jpeg)} bytes have no JPEG header")
