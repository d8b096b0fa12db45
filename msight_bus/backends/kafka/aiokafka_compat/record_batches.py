"""Encoding of record batches, and decoding of the batches encoded here, by aiokafka's C extension; checksums of all batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

RecordHeader = tuple[str, bytes | None]

_CHECKSUM_AT, _CHECKSUM_END = 17, 21
_COPIED = 32 * 1024
"""Bytes of a copy that stays in the processor's cache; the allocation of larger ones costs more than the checksum."""


def has_valid_checksum(batch: memoryview) -> bool:
    """Return whether the CRC-32C of a batch is correct; with the processor's instruction, where google-crc32c has a wheel."""
    if google_crc32c.implementation != "c":  # its Python code takes 100 times as long as aiokafka's C code
        return bool(DefaultRecordBatch(batch).validate_crc())
    crc = 0
    for at in range(_CHECKSUM_END, len(batch), _COPIED):  # google-crc32c accepts only bytes
        crc = google_crc32c.extend(crc, bytes(batch[at : at + _COPIED]))
    return crc == int.from_bytes(batch[_CHECKSUM_AT:_CHECKSUM_END], "big")


def batch_builder(codec: int, max_bytes: int) -> Any:
    """Return an empty batch; its ``append(number, timestamp, key, value, headers)`` returns ``None`` if a record does not fit.

    Args:
        codec: a value of `CODECS`.
        max_bytes: maximum size of the batch, uncompressed.
    """
    return DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, max_bytes)


def read_batch(data: bytes) -> Iterator[tuple[int, bytes | None, bytes | None, Sequence[RecordHeader]]]:
    """Yield timestamp, key, value and headers of each record of a batch that a `batch_builder` encoded."""
    for record in DefaultRecordBatch(data):
        yield record.timestamp, record.key, record.value, record.headers


def record_bytes(key: bytes | None, value: bytes | None, headers: Sequence[RecordHeader]) -> int:
    """Return the maximum size, in bytes, of a batch that holds only this record."""
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)) + 64
