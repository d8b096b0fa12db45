"""JPEG bytes to pictures and back. A picture is a BGR array of height x width x 3 bytes."""

import cv2
import numpy as np
from cv2.typing import MatLike


class FootageError(Exception):
    """The footage or a result cannot be read or written; the message says what to do."""


def encode(picture: MatLike, quality: int = 85) -> bytes:
    """Return the picture as JPEG; ``quality`` is 0 to 100."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode(jpeg: bytes, mode: int = cv2.IMREAD_COLOR) -> MatLike:
    """Return the picture; ``mode``: an ``IMREAD_`` constant of OpenCV.

    Raises:
        FootageError: the bytes are no JPEG.
    """
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), mode) if jpeg else None
    if picture is None:
        raise FootageError(f"{len(jpeg)} bytes do not decode as a JPEG")
    return picture
