"""Bounds a compressed batch before its memory is taken: aiokafka decompresses a megabyte to as many gigabytes as it holds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import unpack_from
from typing import Any

import cramjam

MAX_BYTES = 64 * 1024 * 1024
"""A batch may always take this much decompressed."""

MAX_RATIO = 16
"""And this many times of what it takes compressed: a broker that allows large batches gets room for them."""

_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEAD = 16


class UnreadableBatchError(Exception):
    """It is too large decompressed, or damaged."""


def decompress(codec: int, data: bytes) -> bytes:
    """The records of a batch.

    Args:
        codec: how they are compressed, as the batch's head says.

    Raises:
        UnreadableBatchError: they would take too much memory, or are damaged.
    """
    decode = _CODECS.get(codec)
    if decode is None:
        raise UnreadableBatchError(f"compression {codec} is unknown")
    try:
        return decode(data)
    except Exception as error:  # whatever a codec says of bytes that others chose
        raise UnreadableBatchError(f"it is damaged or too large decompressed: {error}") from error


def _limit(data: bytes) -> int:
    return max(MAX_BYTES, MAX_RATIO * len(data))


def _gzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    out = stream.decompress(data, _limit(data))
    if not stream.eof:
        raise ValueError("the stream does not end")
    return out


def _snappy(data: bytes) -> bytes:
    blocks = [data]
    if data.startswith(_XERIAL):
        blocks, at = [], _XERIAL_HEAD
        while at + 4 <= len(data):
            (size,) = unpack_from("!I", data, at)
            blocks.append(data[at + 4 : at + 4 + size])
            at += 4 + size
    if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > _limit(data):
        raise ValueError("the claimed size is over the limit")
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def _into(codec: Any) -> Callable[[bytes], bytes]:
    def decode(data: bytes) -> bytes:
        room = bytearray(_limit(data))  # pages are taken as they are written
        return bytes(memoryview(room)[: codec.decompress_into(data, room)])

    return decode


_CODECS: dict[int, Callable[[bytes], bytes]] = {
    1: _gzip,
    2: _snappy,
    3: _into(cramjam.lz4),
    4: _into(cramjam.zstd),
}
