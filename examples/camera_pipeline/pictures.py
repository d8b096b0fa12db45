"""Encode and decode JPEG. A picture is a BGR array of height x width x 3 bytes."""

import cv2
import numpy as np
from cv2.typing import MatLike


class FootageError(Exception):
    """Footage cannot be read, or a result cannot be written; the message has the remedy."""


def encode(picture: MatLike, quality: int = 85) -> bytes:
    """Return the picture as JPEG; ``quality`` is 0 to 100."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode(jpeg: bytes, mode: int = cv2.IMREAD_COLOR) -> MatLike:
    """Return the decoded picture; ``mode``: an ``IMREAD_`` constant of OpenCV.

    Raises:
        FootageError: the bytes are not a JPEG.
    """
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), mode) if jpeg else None
    if picture is None:
        raise FootageError(f"{len(jpeg)} bytes cannot be decoded as JPEG")
    return picture
