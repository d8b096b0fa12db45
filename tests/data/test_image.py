from __future__ import annotations

import sys

import pytest

from msight_bus.data import Data, ImageData
from msight_bus.errors import DecodeError

cv2 = pytest.importorskip("cv2")
np = pytest.importorskip("numpy")

GRADIENT = np.indices((48, 64)).sum(axis=0).astype(np.uint8)
COLOURS = np.dstack([GRADIENT, GRADIENT[::-1], np.full_like(GRADIENT, 128)])


def test_a_jpeg_comes_back_nearly_as_it_was():
    image = ImageData.from_ndarray(COLOURS, "cam", jpeg_quality=95)
    assert image.is_encoded
    assert image.size == (48, 64, 3)
    back = Data.deserialize(image.serialize()).to_ndarray()
    assert back.shape == COLOURS.shape
    assert np.abs(back.astype(int) - COLOURS).mean() < 3


@pytest.mark.parametrize("array", [COLOURS, GRADIENT, COLOURS[::2, ::-1]], ids=["colour", "grey", "view"])
def test_raw_samples_come_back_exactly(array):
    image = ImageData.from_ndarray(array, "cam", is_encoded=False)
    back = Data.deserialize(image.serialize()).to_ndarray()
    assert np.array_equal(back, array)


def test_metadata_is_taken_over():
    image = ImageData.from_ndarray(COLOURS, "cam", 1.5, 2.5, detection_results={"objects": []})
    assert (image.sensor_name, image.capture_timestamp, image.creation_timestamp) == ("cam", 1.5, 2.5)
    assert image.detection_results == {"objects": []}


@pytest.mark.parametrize("shape", [(6,), (2, 3, 3, 1), (0, 4), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("encoded", [True, False])
def test_an_array_that_is_no_image_is_refused(shape, encoded):
    with pytest.raises(ValueError, match=r"shape height x width, .*, not \("):
        ImageData.from_ndarray(np.zeros(shape, np.uint8), "cam", is_encoded=encoded)


@pytest.mark.parametrize("quality", [-1, 101, 50.5, "high", None])
def test_a_wrong_quality_is_named(quality):
    with pytest.raises(ValueError, match="jpeg_quality must be 0 to 100, not"):
        ImageData.from_ndarray(COLOURS, "cam", jpeg_quality=quality)


def test_quality_has_its_effect():
    sizes = [len(ImageData.from_ndarray(COLOURS, "cam", jpeg_quality=q).image) for q in (10, 95)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("encoded", [True, False])
def test_other_than_8_bit_samples_are_refused(encoded):
    with pytest.raises(ValueError, match="uint8"):
        ImageData.from_ndarray(GRADIENT.astype(np.float32), "cam", is_encoded=encoded)


def test_what_jpeg_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 0\)"):
        ImageData.from_ndarray(np.zeros((0, 0), np.uint8), "cam")


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_other_encoders_images_are_decoded(extension):
    encoded = cv2.imencode(extension, COLOURS)[1].tobytes()
    assert ImageData(image=encoded).to_ndarray().shape == COLOURS.shape


@pytest.mark.parametrize(
    "image",
    [
        ImageData(),
        ImageData(image=b""),
        ImageData(image=b"no image"),
        ImageData(image=b"\xff\xd8\xff"),
        ImageData(image=cv2.imencode(".jpg", COLOURS)[1].tobytes()[:40]),
        ImageData(image=bytes(12), is_encoded=False),
        ImageData(image=bytes(12), is_encoded=False, size=()),
        ImageData(image=bytes(12), is_encoded=False, size=(2, 2, 4)),
        ImageData(image=bytes(12), is_encoded=False, size=(-2, -2, 3)),
        ImageData(image=b"", is_encoded=False, size=(2**62, 0, 3)),
        ImageData(image=b"x", is_encoded=False, size=(1,) * 100),
    ],
)
def test_images_that_cannot_be_decoded(image):
    with pytest.raises(DecodeError):
        image.to_ndarray()


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_pixels_are_bounded_before_they_are_decoded(extension, monkeypatch):
    image = ImageData(image=cv2.imencode(extension, COLOURS)[1].tobytes())
    assert image.to_ndarray(max_pixels=48 * 64).shape == COLOURS.shape
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DecodeError, match="3072 pixels"):
        image.to_ndarray(max_pixels=48 * 64 - 1)


def test_formats_of_unknown_size_need_the_callers_word():
    image = ImageData(image=cv2.imencode(".bmp", COLOURS)[1].tobytes())
    with pytest.raises(DecodeError, match="max_pixels=None"):
        image.to_ndarray()
    assert np.array_equal(image.to_ndarray(max_pixels=None), COLOURS)


@pytest.mark.parametrize("module", ["cv2", "numpy"])
def test_a_missing_library_is_named_with_its_remedy(module, monkeypatch):
    image = ImageData.from_ndarray(COLOURS, "cam")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'msight-bus\[images\]'"):
        image.to_ndarray()


def test_the_package_does_not_import_them_by_itself():
    import subprocess

    script = "import sys, msight_bus.data; sys.exit('numpy' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
