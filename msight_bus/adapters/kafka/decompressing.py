"""Bounds a compressed batch before its memory is taken: aiokafka decompresses a megabyte to as many gigabytes as it holds."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from struct import unpack_from
from typing import Any

import cramjam
from aiokafka.record.default_records import DefaultRecordBatch

MAX_BYTES = 64 * 1024 * 1024
"""A batch may always take this much decompressed."""

MAX_RATIO = 16
"""And this many times of what it takes compressed: a broker that allows large batches gets room for them."""

_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEAD = 16
_codecs = vars(sys.modules[DefaultRecordBatch.__module__])


class UnreadableBatchError(Exception):
    """It is too large decompressed, or damaged."""


def decompress(batch: Any) -> None:
    """Decompress an aiokafka batch in place.

    Raises:
        UnreadableBatchError: it would take too much memory, or is damaged.
    """
    if not getattr(batch, "compression_type", 0):  # Kafka 4 has no batches of the older formats, which hide theirs
        return
    usual = {name: _codecs[name] for name in _BOUNDED}
    _codecs.update(_BOUNDED)  # other consumers of the process are not bounded
    try:
        iter(batch)
    except (cramjam.DecompressionError, zlib.error, ValueError) as error:
        raise UnreadableBatchError(f"it is damaged or too large decompressed: {error}") from error
    finally:
        _codecs.update(usual)


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


_BOUNDED: dict[str, Callable[[bytes], bytes]] = {
    "gzip_decode": _gzip,
    "snappy_decode": _snappy,
    "lz4_decode": _into(cramjam.lz4),
    "zstd_decode": _into(cramjam.zstd),
}
