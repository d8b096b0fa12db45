"""Records of other programs, row by row of the README's table: confluent-kafka on a real broker."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete
from confluent_kafka import Producer

from msight_bus import DecodeError
from msight_bus.backends.kafka import partition
from msight_bus.events import Gap
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering, make
from tests.support.librdkafka import options, produce, read
from tests.support.receiving import numbers, take
from tests.support.rig import until

README = Path(__file__).parents[3] / "README.md"
NO_TEXT = b"\xff\x00\xfe"
AT = 1_700_000_000_123
DAY = 86_400_000


async def receive(kafka, topic, *records, count=None, **how):
    """The messages of a subscription that was there before the records, and its figures."""
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        await produce(kafka, topic, *records, **how)
        received = await take(messages, len(records) if count is None else count)
        return received, messages.stats


# -- timestamps


async def test_create_time(kafka, topic):
    await make(kafka, topic)
    (message,), _ = await receive(kafka, topic, {"value": b"x", "timestamp": AT})
    assert message.published_at == AT / 1000
    assert (message.session, message.sequence) == (None, None)


async def test_log_append_time(kafka, topic):
    await make(kafka, topic, **{"message.timestamp.type": "LogAppendTime"})
    before = time.time()
    (message,), _ = await receive(kafka, topic, {"value": b"x", "timestamp": AT})
    assert before - 0.001 <= message.published_at <= time.time()


async def test_an_implausible_time(kafka, topic):
    await make(kafka, topic, **{"message.timestamp.after.max.ms": str(2**63 - 1)})
    times = [1, 946_684_799_999, int(time.time() * 1000) + DAY + 60_000]
    received, stats = await receive(kafka, topic, *({"value": b"x", "timestamp": at} for at in times))
    assert [message.published_at for message in received] == [None] * 3
    assert stats.received == 3


async def test_an_old_record_and_a_lifespan(kafka, topic):
    await make(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP, lifespan=60.0) as messages:
        now = int(time.time() * 1000)
        await produce(kafka, topic, {"value": b"0", "timestamp": now - 3_600_000}, {"value": b"1", "timestamp": now})
        assert await numbers(messages, 1) == [1]
        assert messages.stats.dropped == {"too old": 1}


# -- values, keys and headers


async def test_a_value(kafka, topic):
    await make(kafka, topic)
    (first, second), stats = await receive(kafka, topic, {"value": b"\x00\xff"}, {"value": b""})
    assert (first.payload, first.tombstone, second.payload, second.tombstone) == (b"\x00\xff", False, b"", False)
    assert (stats.received, stats.gaps, stats.missing) == (2, 0, 0)


async def test_no_value(kafka, topic):
    await make(kafka, topic, **{"cleanup.policy": "compact"})
    (message,), stats = await receive(kafka, topic, {"key": "k", "value": None})
    assert (message.payload, message.tombstone, message.key) == (b"", True, "k")
    assert stats.received == 1
    with pytest.raises(DecodeError, match="tombstone"):  # FastStream 2933: in a typed handler, an endless loop
        _ = message.data


async def test_keys(kafka, topic):
    await make(kafka, topic)
    keys = [None, b"", "cam ü", NO_TEXT]
    received, _ = await receive(kafka, topic, *({"value": b"x", "key": key} for key in keys))
    assert [message.key for message in received] == [None, "", "cam ü", "\udcff\x00\udcfe"]


async def test_header_values(kafka, topic):
    await make(kafka, topic)
    headers = [("text", "ü".encode()), ("bytes", NO_TEXT), ("none", None)]
    (message,), _ = await receive(kafka, topic, {"value": b"x", "headers": headers})
    assert dict(message.headers) == {"text": "ü", "bytes": "\udcff\x00\udcfe", "none": ""}
    await make(kafka, f"{topic}.copy")
    async with kafka.connect() as bus:
        await bus.publish(f"{topic}.copy", b"", key="\udcff", headers=message.headers)
    (copy,) = await read(kafka, f"{topic}.copy", 1)
    assert copy.key() == b"\xff"
    assert [each for each in copy.headers() if each[0] != "msight"] == [*headers[:2], ("none", b"")]


async def test_a_repeated_header(kafka, topic):
    await make(kafka, topic)
    repeated = [("h", b"1"), ("other", b"x"), ("h", b"2")]
    async with kafka.connect(MSIGHT_KAFKA_MAX_REDELIVERIES="0") as bus:
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            await produce(kafka, topic, {"value": b"x", "headers": repeated})
            (message,) = await take(messages, 1)
            await message.nack()
    assert dict(message.headers) == {"h": "2", "other": "x"}
    (dead,) = await read(kafka, f"{topic}.dead", 1)
    assert [each for each in dead.headers() if not each[0].startswith("msight")] == repeated


# -- transactions


class Transactions:
    """A producer whose transactions a test begins and ends."""

    def __init__(self, kafka, topic):
        self._producer = Producer({**options(kafka), "transactional.id": topic})
        self._topic = topic

    async def run(self, *values, end):
        """One transaction with these values; ``end`` is commit, abort, or None to leave it open."""
        await asyncio.to_thread(self._run, values, end)

    def _run(self, values, end):
        self._producer.begin_transaction()
        for value in values:
            self._producer.produce(self._topic, value)
        self._producer.flush(30)
        if end is not None:
            self.end(end)

    def end(self, how):
        """Commit or abort the open transaction."""
        getattr(self._producer, f"{how}_transaction")(30)

    @classmethod
    async def begin(cls, kafka, topic):
        """A producer that has introduced itself."""
        await make(kafka, topic)
        self = cls(kafka, topic)
        await asyncio.to_thread(self._producer.init_transactions, 30)
        return self


async def test_a_committed_transaction(kafka, topic):
    transactions = await Transactions.begin(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        await transactions.run(b"0", b"1", end="commit")
        await transactions.run(b"2", end="commit")
        assert await numbers(messages, 3) == [0, 1, 2]
        await until(lambda: messages.stats.lag == 0)
        assert messages.stats.gaps in (None, 0)


async def test_an_aborted_transaction(kafka, topic):
    transactions = await Transactions.begin(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        await transactions.run(b"0", b"1", end="abort")
        await transactions.run(b"2", end="commit")
        assert await numbers(messages, 1) == [2]
        await until(lambda: messages.stats.lag == 0)
        stats = messages.stats
        assert (stats.received, stats.gaps, stats.missing, dict(stats.dropped)) == (1, 0, 0, {})
    async with kafka.connect(MSIGHT_KAFKA_ISOLATION="read_uncommitted") as bus:
        async with bus.subscribe(topic, start="earliest") as messages:
            assert await numbers(messages, 3) == [0, 1, 2]


async def test_an_open_transaction(kafka, topic, monkeypatch, caplog):
    monkeypatch.setattr(partition, "_BLOCKED_AFTER", 0.3)
    transactions = await Transactions.begin(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        with caplog.at_level(logging.WARNING, "msight_bus"):
            await transactions.run(b"0", end=None)
            await produce(kafka, topic, {"value": b"1"})
            await until(lambda: caplog.records)
        assert "MSIGHT_KAFKA_ISOLATION" in caplog.text
        assert (messages.stats.received, messages.stats.lag) == (0, 2)
        await asyncio.to_thread(transactions.end, "commit")
        assert await numbers(messages, 2) == [0, 1]


# -- compression, compaction, retention


async def test_codecs(kafka, topic):
    await make(kafka, topic)
    values = [b"%d " % number * 100 for number in range(200)]
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
            records = ({"value": value, "key": "k", "headers": [("h", b"v")]} for value in values)
            await produce(kafka, topic, *records, compression_type=codec, linger_ms=50)
            received = await take(messages, len(values))
            assert [message.payload for message in received] == values
            assert {(message.key, message.headers["h"]) for message in received} == {("k", "v")}
        assert (messages.stats.gaps, messages.stats.missing) == (0, 0)


@pytest.mark.timeout(100)
async def test_a_batch_that_is_too_large_decompressed(kafka, topic):
    await make(kafka, topic)
    events: list = []
    async with kafka.connect(events=events) as bus, bus.subscribe(topic) as messages:
        await produce(
            kafka, topic, {"value": bytes(65 * 2**20)}, compression_type="zstd", message_max_bytes=100 * 2**20
        )
        await produce(kafka, topic, {"value": b"1"})
        assert await numbers(messages, 1) == [1]
        assert messages.stats.missing == 1
    assert events == [Gap(topic, 1, "unreadable")]


async def compact(kafka, topic, records):
    """Publish records on a compacted topic, and wait until only the last one of a key and what is newest are left."""
    quickly = {"min.cleanable.dirty.ratio": "0.001", "segment.ms": "50", "delete.retention.ms": "0"}
    await make(kafka, topic, **{"cleanup.policy": "compact", **quickly})
    await produce(kafka, topic, *records)
    async with asyncio.timeout(40):
        while True:
            await asyncio.sleep(0.2)
            await produce(kafka, topic, {"key": "last", "value": b"last"})  # begins another segment
            async with kafka.connect() as bus, bus.subscribe(topic, start="earliest") as messages:
                left = await take(messages, 1)
                while left[-1].payload != b"last":
                    left += await take(messages, 1)
            if len(left) < len(records):
                return


@pytest.mark.timeout(100)
async def test_a_compacted_topic(kafka, topic):
    records = [{"key": f"k{number % 3}", "value": b"%d" % number} for number in range(30)]
    await compact(kafka, topic, records)
    events: list = []
    async with kafka.connect(events=events) as bus, bus.subscribe(topic, group_id=GROUP, start="earliest") as messages:
        received = await take(messages, 3)
        assert [(message.key, int(message.payload)) for message in received] == [("k0", 27), ("k1", 28), ("k2", 29)]
        assert [message.offset for message in received] == [27, 28, 29]
        while messages.stats.lag:
            assert (await take(messages, 1))[0].payload == b"last"
    assert events == []


async def test_records_deleted_by_retention(kafka, topic):
    await make(kafka, topic)
    events: list = []
    await produce(kafka, topic, *({"value": b"%d" % number} for number in range(10)))
    async with administering(kafka) as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=6)})
    async with kafka.connect(events=events) as bus, bus.subscribe(topic, start={0: 2}) as messages:
        assert await numbers(messages, 4) == [6, 7, 8, 9]
        assert messages.stats.missing == 4
    assert events == [Gap(topic, 4, "retention", at_most=True)]


# -- the other way round


async def test_other_programs_read_records_of_the_bus(kafka, topic):
    async with kafka.connect() as bus:
        await bus.publish(topic, b"\x00payload", key="k", headers={"traceparent": "00-1-2-01"})
        await bus.publish(topic, b"", key="k")
    first, second = await read(kafka, topic, 2)
    assert (first.value(), first.key(), second.value()) == (b"\x00payload", b"k", b"")
    (name, stamp), (trace, value) = sorted(first.headers())
    assert (name, len(stamp), trace, value) == ("msight", 48, "traceparent", b"00-1-2-01")
    assert int(stamp, 16) >= 0


async def test_equal_keys_of_both_clients_go_to_one_partition_with_the_partitioner_of_java(kafka, topic):
    keys = [f"k{number}" for number in range(40)]
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="8") as bus, bus.subscribe(topic) as messages:
        for key in keys:
            await bus.publish(topic, b"ours", key=key)
        ours = {message.key: message.position[0] for message in await take(messages, len(keys))}
        await produce(kafka, topic, *({"value": b"x", "key": key} for key in keys), partitioner="murmur2_random")
        theirs = {message.key: message.position[0] for message in await take(messages, len(keys))}
    assert ours == theirs


# -- the table

TABLE = {
    "a record with a timestamp, `CreateTime`": test_create_time,
    "… on a topic with `LogAppendTime`": test_log_append_time,
    "… before the year 2000, or more than a day ahead": test_an_implausible_time,
    "… older than the subscription's `lifespan`": test_an_old_record_and_a_lifespan,
    "a value": test_a_value,
    "no value (a tombstone)": test_no_value,
    "a key": test_keys,
    "a header": test_header_values,
    "a header twice": test_a_repeated_header,
    "a committed transaction": test_a_committed_transaction,
    "an aborted transaction": test_an_aborted_transaction,
    "a transaction that stays open": test_an_open_transaction,
    "batches compressed with gzip, snappy, lz4 or zstd": test_codecs,
    "a batch that decompresses to more than 64 MiB and more than 16 times its size": test_a_batch_that_is_too_large_decompressed,
    "a compacted topic": test_a_compacted_topic,
    "records that retention has deleted": test_records_deleted_by_retention,
}


def test_each_line_of_the_readmes_table_has_a_test():
    table = README.read_text().partition("| Another program publishes |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[1:] == list(TABLE)
