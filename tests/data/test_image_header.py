from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.data.image_header import count_pixels


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


FRAME = segment(0xC0, b"\x08" + (1080).to_bytes(2, "big") + (1920).to_bytes(2, "big") + b"\x03")
PNG = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (PNG, 640 * 480),
        (PNG[:-1], None),
        (b"\xff\xd8" + FRAME, 1920 * 1080),
        (b"\xff\xd8" + segment(0xE0, b"JFIF") + FRAME, 1920 * 1080),
        (b"\xff\xd8\xff\xff\xff" + FRAME, 1920 * 1080),
        (b"\xff\xd8" + b"stray bytes" + FRAME, 1920 * 1080),
        (b"\xff\xd8\xff\x00\xff\x01\xff\xd0" + FRAME, 1920 * 1080),
        (b"\xff\xd8" + segment(0xE1, FRAME[:2] + bytes(20)) + FRAME, 1920 * 1080),
        (b"\xff\xd8" + segment(0xC4, bytes(20)) + FRAME.replace(b"\xc0", b"\xc2", 1), 1920 * 1080),
        (b"\xff\xd8" + FRAME[:8], None),
        (b"\xff\xd8\xff\xd9" + FRAME, None),
        (b"\xff\xd8" + segment(0xDA, b"") + FRAME, None),
        (b"\xff\xd8\xff", None),
        (b"\xff\xd8", None),
        (b"BM" + bytes(50), None),
        (b"", None),
    ],
)
def test_count_pixels(image, pixels):
    assert count_pixels(image) == pixels


@given(st.binary())
def test_any_bytes_are_read_to_an_end(tail):
    for start in (b"", b"\xff\xd8", PNG[:12]):
        pixels = count_pixels(start + tail)
        assert pixels is None or 0 <= pixels < 2**64
