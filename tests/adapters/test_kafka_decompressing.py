"""Compressed batches come through, and bombs are refused before their memory is taken."""

from __future__ import annotations

import tracemalloc

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from msight_bus.adapters.kafka import decompressing
from msight_bus.adapters.kafka.decompressing import UnreadableBatchError, decompress

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
MEGABYTE = 1 << 20


def batch_of(codec, *values):
    builder = BatchBuilder(1 << 30, CODECS[codec])
    for value in values:
        assert builder.append(timestamp=1, key=None, value=value) is not None
    return MemoryRecords(bytes(builder._build())).next_batch()


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_comes_through(codec):
    batch = batch_of(codec, b"first", bytes(3 * MEGABYTE))
    decompress(batch)
    assert [len(record.value) for record in batch] == [5, 3 * MEGABYTE]


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_is_refused(codec, monkeypatch):
    monkeypatch.setattr(decompressing, "MAX_BYTES", MEGABYTE)
    monkeypatch.setattr(decompressing, "MAX_RATIO", 1)
    batch = batch_of(codec, bytes(32 * MEGABYTE))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableBatchError):
            decompress(batch)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
