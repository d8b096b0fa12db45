"""``ImageData``: one image, encoded or as raw pixels."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any, Self

from msight_bus.data import clock
from msight_bus.data.image_header import count_pixels
from msight_bus.data.sensor import SensorData
from msight_bus.data.tags import DataType
from msight_bus.errors import DecodeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEFAULT_MAX_PIXELS = 64 * 1024 * 1024

_NOT_DECODED = "OpenCV cannot decode the image of {} bytes: it is damaged, or its format is not supported"
_NOT_JPEG = (
    "JPEG cannot encode an array of shape {}; use 1, 3 or 4 channels and sides up to 65,500, or is_encoded=False"
)


class ImageData(SensorData, metaclass=DataType, tag="msight_core.data.image.ImageData"):
    """An image.

    Attributes:
        image: an encoded image (JPEG, PNG), or raw 8-bit samples if ``is_encoded`` is false.
        is_encoded: whether ``image`` is encoded.
        detection_results: the objects detected in the image: a ``Data`` or plain values when sent, plain values when received,
            which ``Data.from_dict`` converts to a registered class.
        size: shape of the array: height and width in pixels and, except for a grey image, the number of channels.
    """

    image: bytes | None = None
    is_encoded: bool = True
    detection_results: Any = None
    size: tuple[int, ...] | None = None

    @classmethod
    def from_ndarray(  # noqa: PLR0917  # MSight's parameters, in MSight's order
        cls,
        image: npt.NDArray[np.uint8],
        sensor_name: str,
        capture_timestamp: float | None = None,
        creation_timestamp: float | None = None,
        is_encoded: bool = True,
        detection_results: Any = None,
        jpeg_quality: int = 50,
    ) -> Self:
        """Create an ``ImageData`` from an array of 8-bit samples, with channels in OpenCV's order (BGR).

        Args:
            image: height x width, or height x width x channels.
            sensor_name: name of the sensor.
            capture_timestamp: time of capture, in POSIX seconds; default: now.
            creation_timestamp: time of creation of this value, in POSIX seconds; default: now.
            is_encoded: whether to compress the image to JPEG, or to send the raw samples.
            detection_results: a ``Data`` or plain values.
            jpeg_quality: 0 to 100.

        Raises:
            ValueError: the samples are not 8-bit, the shape is not that of an image, or ``jpeg_quality`` is out of range.
            ImportError: OpenCV, which JPEG needs, is not installed.
        """
        if image.dtype.str != "|u1":
            raise ValueError(f"image must have 8-bit samples (uint8), not dtype {image.dtype}.")
        if not _is_image(image.shape):
            raise ValueError(
                f"image must have the shape height x width, or height x width x channels, not {image.shape}."
            )
        if is_encoded and jpeg_quality not in range(101):
            raise ValueError(f"jpeg_quality must be 0 to 100, not {jpeg_quality!r}.")
        now = clock.now()
        return cls(
            image=_to_jpeg(image, int(jpeg_quality)) if is_encoded else image.tobytes(),
            is_encoded=is_encoded,
            detection_results=detection_results,
            size=tuple(image.shape),
            sensor_name=sensor_name,
            capture_timestamp=now if capture_timestamp is None else capture_timestamp,
            creation_timestamp=now if creation_timestamp is None else creation_timestamp,
        )

    def to_ndarray(self, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> npt.NDArray[np.uint8]:
        """Return the image as an array of 8-bit samples: BGR if the image was encoded, else read-only.

        Args:
            max_pixels: limit of width x height, checked before memory is allocated, because a JPEG of 100 bytes can declare four
                billion pixels. Only the size of JPEG and PNG is known in advance; None accepts every format and size that
                OpenCV accepts.

        Raises:
            DecodeError: there is no image, the number of samples does not match the size, or the image cannot be decoded.
            ImportError: NumPy, or OpenCV for an encoded image, is not installed.
        """
        if self.image is None:
            raise DecodeError("The ImageData has no image: its field image is None")
        numpy = _need("numpy", "numpy")
        samples: npt.NDArray[np.uint8] = numpy.frombuffer(self.image, dtype=numpy.uint8)
        if self.is_encoded:
            _check_pixels(self.image, max_pixels)
            return _decode(samples)
        size = self.size or ()
        if not _is_image(size) or math.prod(size) != len(self.image):
            raise DecodeError(
                f"The image has {len(self.image)} raw samples and the size {self.size}; the product of height, width and "
                "channels must be the number of samples"
            )
        return samples.reshape(size)


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape) > 0


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Converting an image to an array needs {package}: pip install 'msight-bus[images]'", name=module
        ) from error


def _to_jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    cv2 = _need("cv2", "opencv-python-headless")
    try:
        done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error as error:
        raise ValueError(_NOT_JPEG.format(image.shape)) from error
    if not done:
        raise ValueError(_NOT_JPEG.format(image.shape))
    return bytes(encoded)


def _check_pixels(image: bytes, max_pixels: int | None) -> None:
    if max_pixels is None:
        return
    pixels = count_pixels(image)
    if pixels is None:
        raise DecodeError("The image is neither JPEG nor PNG; to_ndarray(max_pixels=None) decodes other formats")
    if pixels > max_pixels:
        raise DecodeError(f"The image has {pixels} pixels; at most {max_pixels} are decoded (max_pixels of to_ndarray)")


def _decode(samples: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    cv2 = _need("cv2", "opencv-python-headless")
    try:
        image: npt.NDArray[np.uint8] | None = cv2.imdecode(samples, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DecodeError(_NOT_DECODED.format(len(samples))) from error
    if image is None:
        raise DecodeError(_NOT_DECODED.format(len(samples)))
    return image
