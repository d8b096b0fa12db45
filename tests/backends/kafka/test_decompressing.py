"""Compressed batches come through, and bombs are refused before their memory is taken."""

from __future__ import annotations

import tracemalloc

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder

from msight_bus.backends.kafka import decompressing
from msight_bus.backends.kafka.batch_parsing import HEAD_BYTES
from msight_bus.backends.kafka.decompressing import UnreadableBatchError, decompress

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
MEGABYTE = 1 << 20


def records_of(codec, *values):
    """The compressed records of a batch."""
    builder = BatchBuilder(1 << 30, CODECS.get(codec, 0))
    for value in values:
        assert builder.append(timestamp=1, key=None, value=value) is not None
    return bytes(builder._build())[HEAD_BYTES:]


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_comes_through(codec):
    assert decompress(CODECS[codec], records_of(codec, b"first", bytes(3 * MEGABYTE))) == records_of(
        None, b"first", bytes(3 * MEGABYTE)
    )


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_is_refused(codec, monkeypatch):
    monkeypatch.setattr(decompressing, "MAX_BYTES", MEGABYTE)
    monkeypatch.setattr(decompressing, "MAX_RATIO", 1)
    records = records_of(codec, bytes(32 * MEGABYTE))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableBatchError):
            decompress(CODECS[codec], records)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", [*CODECS.values(), 5, 7])
def test_what_is_no_compressed_data_is_refused(codec):
    for data in (b"", b"x", bytes(100), b"\xff" * 100, b"\x82SNAPPY\0" + bytes(20)):
        try:
            decompress(codec, data)
        except UnreadableBatchError:
            continue
        assert codec == CODECS["snappy"]  # whose empty blocks are nothing
