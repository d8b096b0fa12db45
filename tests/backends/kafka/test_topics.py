"""Topics that are deleted, recreated or changed while a bus publishes on them."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.partitioner import murmur2

from msight_bus import MessageTooLargeError, PublishTimeoutError, TopicError
from msight_bus.backends.kafka import backend, topics
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering, make
from tests.support.kafka_traffic import Traffic, outcomes
from tests.support.receiving import take
from tests.support.rig import until

KEYS = [f"k{number}" for number in range(40)]
SOON = {"MSIGHT_CONNECT_TIMEOUT": "2"}


async def delete(kafka, topic):
    """Delete a topic, and wait until the cluster has none of it."""
    async with administering(kafka) as admin:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():
            await asyncio.sleep(0.01)


async def partitions(kafka, topic):
    """How many partitions a topic has, 0 if it does not exist. Asking creates none."""
    async with administering(kafka) as admin:
        if topic not in await admin.list_topics():
            return 0
        (found,) = await admin.describe_topics([topic])
        return len(found["partitions"])


async def publish_to_all(bus, topic, n=1):
    """Publish messages of many keys ``n`` times, and return their errors."""
    return await outcomes(*(bus.publish(topic, b"x", key=key) for _ in range(n) for key in KEYS))


async def test_a_topic_that_must_not_be_created_stays_deleted(kafka, topic):
    """Neither publishers nor subscribers recreate the topic."""
    await make(kafka, topic, 4)
    async with kafka.connect(MSIGHT_KAFKA_CREATE_TOPICS="false", **SOON) as bus:
        async with bus.subscribe(topic) as live, bus.subscribe(topic, group_id=GROUP) as member:
            assert set(await publish_to_all(bus, topic)) == {None}
            await take(live, 1)
            await take(member, 1)
            await delete(kafka, topic)
            async with asyncio.timeout(20):
                while {type(error) for error in await publish_to_all(bus, topic)} != {TopicError}:
                    pass
            await asyncio.sleep(1)  # both clients ask for its metadata meanwhile
            assert await partitions(kafka, topic) == 0
        await make(kafka, topic, 2)
        async with asyncio.timeout(20):
            while any(await publish_to_all(bus, topic)):
                pass
        assert await partitions(kafka, topic) == 2


async def test_a_deleted_topic_is_recreated_with_the_configured_partitions(kafka, topic):
    """With ``MSIGHT_KAFKA_PARTITIONS`` partitions, whatever their former number and the broker's default."""
    await make(kafka, topic, 8)
    async with kafka.connect(**SOON) as bus:
        assert set(await publish_to_all(bus, topic)) == {None}
        await delete(kafka, topic)
        # What was on its way to one of the partitions 4 to 7 has no place any more.
        assert {type(error) for error in await publish_to_all(bus, topic)} <= {type(None), PublishTimeoutError}
        assert set(await publish_to_all(bus, topic)) == {None}
        assert await partitions(kafka, topic) == 4
        async with bus.publisher(topic) as publisher:
            await publisher.send(b"x")


async def test_publishing_continues_on_a_topic_recreated_with_fewer_partitions(kafka, topic):
    """Other topics are not affected; a batch for a removed partition fails before its deadline."""
    await make(kafka, topic, 8)
    async with kafka.connect(**SOON, MSIGHT_PUBLISH_TIMEOUT="600") as bus:
        assert set(await publish_to_all(bus, topic)) == {None}
        async with Traffic(bus, f"{topic}.other") as traffic:
            await delete(kafka, topic)
            await make(kafka, topic, 1)
            async with asyncio.timeout(20):
                while any(await publish_to_all(bus, topic)):
                    pass
            await traffic.moves()
        assert await partitions(kafka, topic) == 1


async def test_added_partitions_are_used_without_a_restart(kafka, topic, monkeypatch, caplog):
    """Running and new processes use the same partition for a key."""
    monkeypatch.setattr(backend, "_METADATA_AGE_MS", 300)
    await make(kafka, topic, 2)
    async with kafka.connect() as bus, kafka.connect() as other:
        await bus.publish(topic, b"x", key="k")
        async with administering(kafka) as admin:
            await admin.create_partitions({topic: NewPartitions(8)})
        await until(lambda: f"{topic} has 8 partitions now, 2 before" in caplog.text)
        async with other.subscribe(topic) as messages:
            assert set(await publish_to_all(bus, topic)) == {None}
            received = await take(messages, len(KEYS))
    assert {message.key: message.position[0] for message in received} == {
        key: (murmur2(key.encode()) & 0x7FFFFFFF) % 8 for key in KEYS
    }


async def limit(kafka, topic, size):
    async with administering(kafka) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": f"{size}"})])


async def test_a_raised_limit_is_used(kafka, topic, monkeypatch, caplog):
    monkeypatch.setattr(backend, "_METADATA_AGE_MS", 200)
    monkeypatch.setattr(topics, "_LOOK_ANEW_AFTER", 0.1)
    await make(kafka, topic, 1, **{"max.message.bytes": "2000"})
    async with kafka.connect() as bus:
        await bus.publish(topic, b"x")
        with pytest.raises(MessageTooLargeError):
            await bus.publish(topic, bytes(5000))
        await limit(kafka, topic, 10_000)
        await until(lambda: f"{topic} accepts messages of at most 10000 bytes now, 2000 before" in caplog.text)
        await bus.publish(topic, bytes(5000))


async def test_a_lowered_limit_is_known_after_the_first_refusal(kafka, topic):
    """The error of a refusal by the broker has no unknown figures."""
    await make(kafka, topic)
    async with kafka.connect() as bus:
        await bus.publish(topic, b"x")
        await limit(kafka, topic, 2000)
        async with asyncio.timeout(20):  # the broker applies it soon
            while (error := (await outcomes(bus.publish(topic, bytes(5000))))[0]) is None:
                pass
            assert isinstance(error, MessageTooLargeError)
            assert (error.size, error.limit) == (None, None)
            while (error := (await outcomes(bus.publish(topic, bytes(5000))))[0]).limit is None:
                pass
        assert error.limit == 2000
        assert error.size > 5000


@pytest.mark.faults
@pytest.mark.timeout(100)
async def test_deleting_topics_repeatedly_ends_no_publisher(kafka, topic):
    """Every message has an outcome, and the last ones are accepted."""
    async with kafka.connect(**SOON) as bus:
        await bus.publish(topic, b"x")
        stop = asyncio.Event()
        results = []

        async def stream():
            while not stop.is_set():
                results.extend(await publish_to_all(bus, topic))

        task = asyncio.create_task(stream())
        for _ in range(3):
            before = len(results)
            await until(lambda before=before: len(results) > before + 200, within=30)
            await delete(kafka, topic)
        before = len(results)
        await until(lambda: len(results) > before + 200, within=30)
        stop.set()
        await task
    assert {type(result) for result in results if result is not None} <= {PublishTimeoutError}
    assert not any(results[-100:])
