"""What only a log has: positions, partitions, topics that are made, members that come and go."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from msight_bus import AuthenticationError, BusError, MessageTooLargeError, PublishTimeoutError, QueuePolicy, TopicError
from msight_bus.backends.kafka.client import client_options
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering
from tests.support.receiving import numbers, take
from tests.support.rig import until


async def test_a_subscription_starts_at_a_moment(kafka, topic):
    async with kafka.connect() as bus:
        await bus.publish(topic, b"0")
        await asyncio.sleep(0.01)
        moment = datetime.now(UTC)
        await bus.publish(topic, b"1")
        async with bus.subscribe(topic, start=moment) as messages:
            assert await numbers(messages, 1) == [1]
        async with bus.subscribe(topic, start=moment + timedelta(days=1)) as messages:
            await bus.publish(topic, b"2")
            assert await numbers(messages, 1) == [2]


async def test_a_subscription_starts_at_given_offsets(kafka, topic):
    async with kafka.connect() as bus:
        for i in range(6):
            await bus.publish(topic, b"%d" % i)
        async with bus.subscribe(topic, start="earliest") as messages:
            partition, _ = (await take(messages, 1))[0].position
        async with bus.subscribe(topic, start={partition: 4}) as messages:
            assert await numbers(messages, 2) == [4, 5]


async def test_a_groups_committed_position_wins_over_start(kafka, topic):
    async with kafka.connect() as bus:
        for i in range(4):
            await bus.publish(topic, b"%d" % i)
        async with bus.subscribe(topic, group_id=GROUP, start="earliest") as messages:
            assert await numbers(messages, 2) == [0, 1]
            async with asyncio.timeout(20):
                await anext(messages)
        async with bus.subscribe(topic, group_id=GROUP, start="earliest") as messages:
            assert await numbers(messages, 2) == [2, 3]


async def test_messages_without_a_key_share_a_partition_and_carry_none(kafka, topic):
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic, name="cam_ne") as publisher:
            for _ in range(20):
                await publisher.send(b"x")
        received = await take(messages, 20)
    assert len({message.position[0] for message in received}) == 1
    assert {message.key for message in received} == {None}


async def test_keys_spread_over_partitions_and_stay(kafka, topic):
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        for i in range(60):
            await bus.publish(topic, b"x", key=f"object {i % 20}")
        received = await take(messages, 60)
    where = {(message.key, message.position[0]) for message in received}
    assert len(where) == 20
    assert len({partition for _, partition in where}) > 1


async def test_names_that_kafka_cannot_tell_apart_are_refused(kafka, topic):
    async with kafka.connect() as bus:
        await bus.publish(f"{topic}.a", b"")
        collides = f"{topic}_a"
        with pytest.raises(TopicError, match=f"{collides}.*{topic}.a"):
            await bus.publish(collides, b"")
        with pytest.raises(TopicError, match=f"{collides}.*{topic}.a"):
            async with bus.subscribe(collides):
                pass


async def test_topics_are_not_made_where_that_is_not_wanted(kafka, topic):
    async with kafka.connect(MSIGHT_KAFKA_CREATE_TOPICS="false") as bus:
        with pytest.raises(TopicError, match="MSIGHT_KAFKA_CREATE_TOPICS"):
            await bus.publish(topic, b"")
        with pytest.raises(TopicError, match="MSIGHT_KAFKA_CREATE_TOPICS"):
            async with bus.subscribe(topic):
                pass
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="2") as bus:
        await bus.publish(topic, b"")
        assert bus.core.backend._directory.known(topic).partitions == 2


async def test_a_topics_own_size_limit_is_known_before_sending(kafka, topic):
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "2000"})])
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        with pytest.raises(MessageTooLargeError) as caught:
            await bus.publish(topic, bytes(2000))
        assert caught.value.limit == 2000
        await bus.publish(topic, bytes(1000))
        assert len((await take(messages, 1))[0].payload) == 1000


async def test_after_a_batch_that_is_refused_for_good_publishing_goes_on(kafka, topic):
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"first")
        async with administering(kafka) as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "1000"})])
        async with asyncio.timeout(20):  # the limit was learned before; the broker applies the new one soon
            while True:
                try:
                    await bus.publish(topic, bytes(5000))
                except MessageTooLargeError:
                    break
        await bus.publish(topic, b"last")
        received = await take(messages, 2)
        while received[-1].payload != b"last":
            received += await take(messages, 1)


async def test_a_foreign_record_has_none_of_our_metadata(kafka, topic):
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        producer = AIOKafkaProducer(bootstrap_servers=str(bus.settings.kafka.servers[0]))
        await producer.start()
        before = time.time()
        await producer.send_and_wait(topic, b"raw", headers=[("h", b"\xff"), ("msight", b"junk")], partition=0)
        await producer.send_and_wait(topic, None, key=b"tombstone", partition=0)
        await producer.stop()
        raw, tombstone = await take(messages, 2)
    assert (raw.payload, raw.sequence, raw.session, raw.headers["h"], raw.tombstone) == (
        b"raw",
        None,
        None,
        "\udcff",
        False,
    )
    assert before - 0.001 <= raw.published_at <= time.time()
    assert (tombstone.payload, tombstone.key, tombstone.tombstone) == (b"", "tombstone", True)


async def test_members_come_and_go_under_load_and_nothing_is_lost(kafka, topic):
    done: list[int] = []
    handled = [0, 0, 0]
    published = 0
    enough = asyncio.Event()

    async def work(bus, member, stop):
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            while not stop.is_set():
                try:
                    async with asyncio.timeout(0.2):
                        done.append(int((await anext(messages)).payload))
                        handled[member] += 1
                except TimeoutError:
                    continue

    async with kafka.connect() as bus, kafka.connect() as other, asyncio.TaskGroup() as tasks:
        stops = [asyncio.Event() for _ in range(3)]
        async with bus.subscribe(topic, group_id=GROUP):
            pass  # the group exists from now on

        async def publish():
            nonlocal published
            async with bus.publisher(topic) as publisher:
                while not enough.is_set():
                    await publisher.send(b"%d" % published, key=f"k{published % 50}")
                    published += 1
                    if published % 10 == 0:
                        await asyncio.sleep(0.01)

        publishing = tasks.create_task(publish())
        for member, through in enumerate((bus, other, other)):
            working = tasks.create_task(work(through, member, stops[member]))
            await until(lambda member=member: handled[member])
        stops[2].set()
        await working
        former = list(handled)
        await until(lambda: handled[0] > former[0] and handled[1] > former[1])
        enough.set()
        await publishing
        await until(lambda: len(set(done)) == published)
        for stop in stops:
            stop.set()
    assert set(done) == set(range(published))


async def test_a_slow_handler_does_not_cost_the_membership(kafka, topic):
    async with kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="2") as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"0")
            await bus.publish(topic, b"1")
            assert await numbers(messages, 1) == [0]
            member = messages._at_broker.member.member_id
            await asyncio.sleep(2.5)  # the handler: busy for longer than the session timeout
            assert await numbers(messages, 1) == [1]
            assert messages._at_broker.member.member_id == member


def test_authentication_errors_are_told_apart():
    from aiokafka.errors import TopicAuthorizationFailedError

    from msight_bus.backends.kafka.errors import translate

    assert isinstance(translate(TopicAuthorizationFailedError("t"), "publish"), AuthenticationError)


async def test_records_are_taken_as_the_client_parsed_them(kafka, topic, monkeypatch):
    """Guards the one private place of aiokafka that the fetch path leans on: a new release that moves it fails here."""
    from msight_bus.backends.kafka import partition

    kinds = set()

    def spy(topic, records, *rest):
        records = list(records)
        kinds.update(type(record).__name__ for record in records)
        return to_messages(topic, records, *rest)

    to_messages = partition.to_messages
    monkeypatch.setattr(partition, "to_messages", spy)
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        for i in range(5):
            await bus.publish(topic, b"%d" % i)
        assert await numbers(messages, 5) == [0, 1, 2, 3, 4]
    assert kinds == {"DefaultRecord"}


async def test_a_batch_is_read_in_parts_and_from_its_middle(kafka, topic):
    """A fetch brings whole batches: what was not asked for is skipped, what does not fit stays, and nothing comes twice."""
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="1") as bus:
        async with bus.publisher(topic) as publisher:
            for i in range(50):
                await publisher.send(b"%d" % i)  # without a pause: one batch
        await bus.publish(topic, b"50")
        async with bus.subscribe(topic, start={0: 20}, queue=QueuePolicy.block(7)) as messages:
            await until(lambda: messages.stats.queued >= 7)
            await bus.publish(topic, b"51")
            assert messages.stats.queued == 7
            assert await numbers(messages, 32) == list(range(20, 52))
            assert messages.stats.queued_peak == 7


async def test_a_record_lingers_until_its_batch_is_full(kafka, topic):
    linger = {"MSIGHT_KAFKA_LINGER_MS": "60000", "MSIGHT_KAFKA_BATCH_BYTES": "2000", "MSIGHT_DRAIN_TIMEOUT": "0.1"}
    async with kafka.connect(**linger) as bus, kafka.connect() as other:
        publisher = await bus.publisher(topic).__aenter__()  # leaving it would wait for the last one
        first = await publisher.send(bytes(800))
        await other.publish(topic, b"x")  # a round trip, and the first one has not left
        assert not first.done()
        second, third = [await publisher.send(bytes(800)) for _ in range(2)]
        assert first is second is not third
        async with asyncio.timeout(20):
            await first
        assert not third.done()
    with pytest.raises(PublishTimeoutError):
        await third


async def test_a_subscription_whose_reading_fails_says_so(kafka, topic, monkeypatch):
    """Nobody awaits the task that fetches; an error that nobody thought of must not end it in silence."""
    from msight_bus.backends.kafka import partition

    def fail(*_):
        raise RuntimeError("a bug")

    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        monkeypatch.setattr(partition, "to_messages", fail)
        await bus.publish(topic, b"x")
        with pytest.raises(BusError, match="a bug"):
            await numbers(messages, 1)


async def test_a_write_to_a_just_closed_connection_is_a_lost_connection(kafka, topic):
    """aiokafka's producer would end for good over anything but an error of its own."""
    async with kafka.connect() as bus:
        await bus.publish(topic, b"0")
        for connection in list(bus.core.backend._client._conns.values()):
            connection._writer.transport.abort()
            await asyncio.sleep(0)  # it is closed, and aiokafka has not heard of it
            with pytest.raises(KafkaConnectionError):
                await connection.send(MetadataRequest([]))
        await bus.publish(topic, b"1")


async def test_what_was_fetched_is_given_back_without_the_garbage_collector(kafka, topic):
    payload, count = bytes(500_000), 40
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="1") as bus:
        async with bus.publisher(topic) as publisher:
            for _ in range(count):
                await publisher.send(payload)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            async with bus.subscribe(topic, start="earliest", queue=QueuePolicy.block(1)) as messages:
                for _ in range(count):
                    await anext(messages)
                left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert left < count * len(payload) / 2  # a fetch or two


async def test_a_header_of_zeros_is_none_of_ours(kafka, topic):
    producer = AIOKafkaProducer(**client_options(kafka.settings()))
    async with kafka.connect() as bus, bus.subscribe(topic, start="earliest") as messages:
        async with producer:
            await producer.send_and_wait(topic, b"x", headers=[("msight", b"0" * 48)])
        (message,) = await take(messages, 1)
    assert (message.session, message.sequence) == (None, None)
    assert message.published_at is None or abs(message.published_at - message.received_at) < 3600  # the record's own
