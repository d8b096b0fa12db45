"""Read the size of an encoded image from its header, without decoding the image."""

from __future__ import annotations

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # segments with a size
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
_JPEG_ENDS = frozenset({0xD9, 0xDA})  # no size follows these


def count_pixels(image: bytes) -> int | None:
    """Return width x height as declared by a JPEG or PNG; None for other formats and for a header without a size."""
    size = read_size(image)
    return None if size is None else size[1] * size[2]


def read_size(image: bytes) -> tuple[str, int, int] | None:
    """Return ``"JPEG"`` or ``"PNG"`` and the declared width and height; None as for `count_pixels`."""
    if image.startswith(_PNG) and image[12:16] == b"IHDR" and len(image) >= 24:
        return "PNG", int.from_bytes(image[16:20], "big"), int.from_bytes(image[20:24], "big")
    if image.startswith(_JPEG):
        return _jpeg_size(image)
    return None


def _jpeg_size(image: bytes) -> tuple[str, int, int] | None:
    at = 2
    # Decoders skip bytes between segments, so a size after such bytes is valid.
    while (at := image.find(b"\xff", at)) >= 0:
        at += 1
        marker = image[at] if at < len(image) else 0
        if marker in (0x00, 0xFF):
            continue
        if marker in _JPEG_ENDS:
            return None
        if marker in _JPEG_FRAMES and at + 8 <= len(image):
            return "JPEG", int.from_bytes(image[at + 6 : at + 8], "big"), int.from_bytes(image[at + 4 : at + 6], "big")
        at += 1
        if marker not in _JPEG_BARE:
            at += int.from_bytes(image[at : at + 2], "big")
    return None
