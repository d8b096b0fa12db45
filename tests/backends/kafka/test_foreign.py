"""Records of other programs: malformed records, timestamps, keys and values that are not text, transactions."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import KafkaConnectionError

from msight_bus import HeaderError, QueuePolicy
from msight_bus.backends.kafka import consumer, partition
from msight_bus.backends.kafka.aiokafka_compat import FetchRequest
from msight_bus.events import Gap
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering
from tests.support.kafka_records import NOW_MS, Rec, batch_of, now_ms, raw_producer
from tests.support.receiving import numbers, take
from tests.support.rig import until

GROUPS = pytest.mark.parametrize("group_id", [GROUP, None], ids=["group", "alone"])


async def make_topic(kafka, topic, partitions=1, **options):
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=options)])


@asynccontextmanager
async def producing(kafka, **options):
    """Another make's producer."""
    producer = AIOKafkaProducer(bootstrap_servers=str(kafka.settings().kafka.servers[0]), **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def committed(kafka, topic, group_id=GROUP):
    """What is committed of the first partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=str(kafka.settings().kafka.servers[0]), group_id=group_id, enable_auto_commit=False
    )
    await consumer.start()
    try:
        return await consumer.committed(TopicPartition(topic, 0))
    finally:
        await consumer.stop()


def record(number, **options):
    return Rec(b"%d" % number, **options)


ODD = {
    "a header name that is no text": (0, record(1, headers=[(b"\xff\xfe", b"x")])),
    "a header name that is no text, compressed": (1, record(1, headers=[(b"\xff\xfe", b"x")])),
    "attributes": (0, record(1, attributes=0x80)),
    "an offset that is none of its batch": (0, record(1, offset_delta=100_000)),
    "a huge timestamp": (0, record(1, timestamp_delta=2**60)),
}


# -- odd records


@GROUPS
@pytest.mark.parametrize("odd", ODD)
async def test_a_malformed_record_does_not_stop_the_partition(kafka, topic, odd, group_id):
    await make_topic(kafka, topic, **{"message.timestamp.after.max.ms": str(2**63 - 1)})
    codec, bad = ODD[odd]
    async with kafka.connect() as bus, raw_producer(kafka) as produce:
        async with bus.subscribe(topic, group_id=group_id) as messages:
            await produce(topic, batch_of(record(0), bad, record(2), codec=codec, timestamp=now_ms()))
            await bus.publish(topic, b"3")
            received = await take(messages, 4)
            assert [(int(message.payload), message.position) for message in received] == [(i, (0, i)) for i in range(4)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(messages)
    if group_id:
        assert await committed(kafka, topic) == 4


# -- timestamps


@pytest.mark.parametrize("kind", ["CreateTime", "LogAppendTime"])
async def test_the_timestamp_of_a_foreign_record_is_when_it_was_published(kafka, topic, kind):
    await make_topic(kafka, topic, **{"message.timestamp.type": kind})
    async with kafka.connect() as bus, producing(kafka) as producer, bus.subscribe(topic) as messages:
        before = time.time()
        await producer.send_and_wait(topic, b"old", timestamp_ms=NOW_MS)
        await producer.send_and_wait(topic, b"1970", timestamp_ms=0)
        await bus.publish(topic, b"ours")
        old, epoch, ours = await take(messages, 3)
    assert before <= ours.published_at
    if kind == "CreateTime":
        assert (old.published_at, epoch.published_at) == (NOW_MS / 1000, None)
    else:
        assert before - 0.001 <= old.published_at <= epoch.published_at <= time.time()


async def test_a_lifespan_drops_old_records_of_others(kafka, topic):
    await make_topic(kafka, topic)
    async with kafka.connect() as bus, producing(kafka) as producer:
        async with bus.subscribe(topic, lifespan=60.0) as messages:
            await producer.send_and_wait(topic, b"0", timestamp_ms=now_ms() - 3_600_000)
            await producer.send_and_wait(topic, b"1", timestamp_ms=now_ms())
            assert await numbers(messages, 1) == [1]
            assert messages.stats.dropped == {"too old": 1}


# -- bytes that are no text


async def test_what_is_no_text_is_published_again_unchanged(kafka, topic):
    await make_topic(kafka, topic)
    await make_topic(kafka, f"{topic}.copy")
    record = {"key": b"\xff\x00\xfe", "headers": [("binary", b"\x00\x9f\x0a"), ("twice", b"1"), ("twice", b"2")]}
    copies = AIOKafkaConsumer(
        f"{topic}.copy", bootstrap_servers=str(kafka.settings().kafka.servers[0]), auto_offset_reset="earliest"
    )
    async with kafka.connect() as bus, producing(kafka) as producer, bus.subscribe(topic) as messages:
        await producer.send_and_wait(topic, b"x", **record)
        (message,) = await take(messages, 1)
        assert message.headers["twice"] == "2"
        await bus.publish(f"{topic}.copy", message.payload, key=message.key, headers=message.headers)
        async with bus.publisher(f"{topic}.copy") as publisher:
            await publisher.send(message.payload, message.key, message.headers)
        await copies.start()
        try:
            for _ in range(2):
                copy = await copies.getone()
                assert copy.key == record["key"]
                assert [header for header in copy.headers if header[0] != "msight"] == [
                    ("binary", b"\x00\x9f\x0a"),
                    ("twice", b"2"),
                ]
        finally:
            await copies.stop()


async def test_what_is_no_text_travels_on_a_log_only(backend, topic):
    async with backend.connect() as bus, bus.publisher(topic) as publisher:
        for options in ({"key": "\udcff"}, {"headers": {"h": "\udcff"}}):
            for publish in (publisher.send, lambda data, **options: bus.publish(topic, data, **options)):
                if bus.capabilities.persistence:
                    await publish(b"", **options)
                else:
                    with pytest.raises(HeaderError):
                        await publish(b"", **options)


# -- transactions


@asynccontextmanager
async def transactions(kafka, topic):
    """A function that publishes numbers in a transaction, which it commits unless told otherwise."""
    async with producing(kafka, transactional_id=topic) as producer:

        async def transaction(*payloads, end="commit"):
            await producer.begin_transaction()
            for number in payloads:
                await producer.send_and_wait(topic, b"%d" % number, partition=0)
            if end == "commit":
                await producer.commit_transaction()
            elif end == "abort":
                await producer.abort_transaction()

        transaction.producer = producer
        yield transaction


@GROUPS
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
async def test_what_was_aborted_is_not_delivered(kafka, topic, group_id, isolation):
    await make_topic(kafka, topic)
    async with kafka.connect(MSIGHT_KAFKA_ISOLATION=isolation) as bus, transactions(kafka, topic) as transaction:
        async with bus.subscribe(topic, group_id=group_id) as messages:
            await transaction(0, 1)
            await transaction(2, 3, end="abort")
            await bus.publish(topic, b"4")
            await transaction(5)
            expected = [0, 1, 4, 5] if isolation == "read_committed" else [0, 1, 2, 3, 4, 5]
            assert await numbers(messages, len(expected)) == expected


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_a_position_skips_the_markers_of_transactions(kafka, topic, end):
    """Else a group lags behind for ever, and its position falls to retention."""
    await make_topic(kafka, topic)
    events: list = []
    async with kafka.connect(events=events) as bus, transactions(kafka, topic) as transaction:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"0")
            await transaction(1, 2, end=end)
            count = 3 if end == "commit" else 1
            assert await numbers(messages, count) == list(range(count))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(messages)
            await until(lambda: messages.stats.lag == 0)
        assert await committed(kafka, topic) == 4
    assert events == []


async def test_the_latest_is_the_last_stable_offset(kafka, topic):
    await make_topic(kafka, topic)
    async with kafka.connect() as bus, transactions(kafka, topic) as transaction:
        await bus.publish(topic, b"0")
        await transaction(1, 2, end=None)
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"3")
            await transaction.producer.commit_transaction()
            assert await numbers(messages, 3) == [1, 2, 3]


async def test_a_transaction_that_stays_open_is_said_once(kafka, topic, monkeypatch, caplog):
    monkeypatch.setattr(partition, "_BLOCKED_AFTER", 0.3)
    warn_if_blocked = partition.Partition.warn_if_blocked
    looks = []

    def look(self, now):
        warn_if_blocked(self, now)
        looks.append(now)

    monkeypatch.setattr(partition.Partition, "warn_if_blocked", look)
    monkeypatch.setattr(consumer, "_CHECK_EVERY", 0.05)
    await make_topic(kafka, topic)
    async with kafka.connect() as bus, transactions(kafka, topic) as transaction:
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"0")
            await transaction(1, end=None)
            await bus.publish(topic, b"2")
            assert await numbers(messages, 1) == [0]
            with caplog.at_level(logging.WARNING, "msight_bus"):
                await until(lambda: caplog.records)
                looks.clear()
                await until(lambda: looks and looks[-1] - looks[0] > 3 * partition._BLOCKED_AFTER)
            (warning,) = caplog.messages
            assert topic in warning
            assert "partition 0" in warning
            assert "2 records" in warning
            assert "MSIGHT_KAFKA_ISOLATION" in warning
            assert messages.stats.lag == 2
            await transaction.producer.commit_transaction()
            assert await numbers(messages, 2) == [1, 2]


# -- gaps and lag


async def test_a_lag_is_what_the_consumer_has_not_been_given(kafka, topic):
    await make_topic(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        for number in range(5):
            await bus.publish(topic, b"%d" % number)
        await until(lambda: messages.stats.lag == 5)
        await numbers(messages, 2)
        assert messages.stats.lag == 3


async def test_a_lag_is_known_of_logs_only(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        if bus.capabilities.persistence:
            await until(lambda: messages.stats.lag == 0)
        else:
            assert messages.stats.lag is None


async def test_retention_of_a_marker_is_told_as_a_bound(kafka, topic):
    await make_topic(kafka, topic)
    events: list = []
    async with kafka.connect(events=events) as bus, transactions(kafka, topic) as transaction:
        await transaction(0)
        await bus.publish(topic, b"1")
        async with administering(kafka) as admin:
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=2)})
        async with bus.subscribe(topic, start={0: 1}) as messages:
            assert await numbers(messages, 1) == [1]
    assert events == [Gap(topic, 1, "retention", at_most=True)]


# -- the latest n of a log


async def publish(bus, topic, numbers):
    async with bus.publisher(topic) as publisher:
        for number in numbers:
            await publisher.send(b"%d" % number)


@pytest.mark.parametrize("profile", [{}, {"MSIGHT_KAFKA_FETCH_BYTES": "2000"}], ids=["one fetch", "many fetches"])
async def test_a_consumer_of_the_latest_skips_what_is_older_when_it_comes(kafka, topic, profile):
    await make_topic(kafka, topic)
    events: list = []
    async with kafka.connect(events=events, **profile) as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await publish(bus, topic, range(3))
            await numbers(messages, 3)
        before = await committed(kafka, topic)
        await publish(bus, topic, range(3, 300))
        async with bus.subscribe(topic, group_id=GROUP, queue=QueuePolicy.latest(10)) as messages:
            first = await anext(messages)
            assert int(first.payload) >= 290
            await messages.commit()
            assert await committed(kafka, topic) == before  # nothing behind it is done yet
            await until(lambda: messages.stats.received == 300 - before)
            assert messages.stats.dropped["skipped"] == 290 - before
            await first.ack()
            await messages.commit()
            assert await committed(kafka, topic) > 290
        assert events == []


async def test_a_consumer_of_the_latest_skips_what_is_older_when_a_broker_comes_back(kafka, topic):
    await make_topic(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.latest(10)) as messages:
        await publish(bus, topic, range(1))
        await numbers(messages, 1)
        client = messages._at_broker.client
        original = client.send
        failed = asyncio.Event()

        async def unreachable(node, request, **options):
            if isinstance(request, FetchRequest):
                failed.set()
            raise KafkaConnectionError("away")

        client.send = unreachable
        await publish(bus, topic, range(1, 3000))
        await failed.wait()  # a fetch that was under way may have brought the first ones
        client.send = original
        await until(lambda: messages.stats.received == 3000)
        assert int((await anext(messages)).payload) >= 2990
        assert "skipped" in messages.stats.dropped


@pytest.mark.parametrize("options", [{"start": "earliest"}, {"queue": QueuePolicy.drop_oldest(10)}])
async def test_who_did_not_ask_for_the_latest_alone_gets_everything(kafka, topic, options):
    await make_topic(kafka, topic)
    options = {"queue": QueuePolicy.latest(10), **options}
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP):
            pass
        await publish(bus, topic, range(50))
        async with bus.subscribe(topic, group_id=GROUP, **options) as messages:
            await until(lambda: messages.stats.received == 50)
            assert "skipped" not in messages.stats.dropped
