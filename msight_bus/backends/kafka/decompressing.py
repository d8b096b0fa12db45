"""Decompresses record batches with a size limit; aiokafka has none, and a megabyte can decompress to gigabytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import unpack_from
from typing import Any

import cramjam

MAX_BYTES = 64 * 1024 * 1024
"""Decompressed size that is always accepted."""

MAX_RATIO = 16
"""Accepted ratio of decompressed to compressed size above `MAX_BYTES`, for brokers that allow large batches."""

_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEAD = 16


class UnreadableBatchError(Exception):
    """The decompressed batch exceeds the limit, or the batch is damaged."""


def decompress(codec: int, data: bytes) -> bytes:
    """Decompress the records of a batch.

    Args:
        codec: `Head.codec` of the batch.
        data: the compressed records.

    Raises:
        UnreadableBatchError: the decompressed size exceeds the limit, the data are damaged or the codec is unknown.
    """
    decode = _CODECS.get(codec)
    if decode is None:
        raise UnreadableBatchError(f"unknown compression codec {codec}")
    try:
        return decode(data)
    except Exception as error:  # codecs raise anything for invalid bytes
        raise UnreadableBatchError(f"damaged, or too large decompressed: {error}") from error


def _limit(data: bytes) -> int:
    return max(MAX_BYTES, MAX_RATIO * len(data))


def _gzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    out = stream.decompress(data, _limit(data))
    if not stream.eof:
        raise ValueError(f"the stream is incomplete or exceeds the limit of {_limit(data)} bytes")
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
        raise ValueError(f"the announced size exceeds the limit of {_limit(data)} bytes")
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def _into(codec: Any) -> Callable[[bytes], bytes]:
    def decode(data: bytes) -> bytes:
        room = bytearray(_limit(data))  # the operating system allocates pages as they are written
        return bytes(memoryview(room)[: codec.decompress_into(data, room)])

    return decode


_CODECS: dict[int, Callable[[bytes], bytes]] = {
    1: _gzip,
    2: _snappy,
    3: _into(cramjam.lz4),
    4: _into(cramjam.zstd),
}
