"""Reports of users of other clients, tried here; `tests/REPORTS.md` lists them with those that other tests try."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiokafka.admin import NewTopic

from msight_bus import BusError, MessageTooLargeError
from msight_bus.backends.kafka import consumer
from msight_bus.backends.kafka.aiokafka_compat import member, requests
from msight_bus.events import Gap
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering, committed, make
from tests.support.kafka_traffic import outcomes
from tests.support.operators import Operator
from tests.support.receiving import numbers, take
from tests.support.rig import QUICKLY, own_broker
from tests.support.servers import kafka_with_passwords


async def test_records_deleted_by_retention_during_an_absence_are_a_gap_and_the_rest_is_read(kafka, topic):
    """(aiokafka 261) Its committed offset is out of range when it comes back."""
    await make(kafka, topic)
    events: list = []
    async with kafka.connect(events=events) as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"0")
            await numbers(messages, 1)
            await messages.commit()
        for number in range(1, 10):
            await bus.publish(topic, b"%d" % number)
        start = await committed(kafka, topic, GROUP)
        await Operator(kafka).delete_records(topic, {0: 6})
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert await numbers(messages, 4) == [6, 7, 8, 9]
    assert events == [Gap(topic, 6 - start, "retention", at_most=True)]


async def test_a_failed_message_is_redelivered_although_later_ones_are_done(kafka, topic):
    """(FastStream 2618, 2610) Nothing behind an open message is committed, nor a message before it is done."""
    await make(kafka, topic)
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            for number in range(4):
                await bus.publish(topic, b"%d" % number)
            taken = await take(messages, 4)
            for message in (taken[0], taken[2], taken[3]):
                await message.ack()
            await messages.commit()
        assert await committed(kafka, topic, GROUP) == 1
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert await numbers(messages, 3) == [1, 2, 3]


@pytest.mark.parametrize("is_pattern", [False, True], ids=["list", "pattern"])
async def test_a_deleted_topic_delays_no_commit_of_the_others(kafka, topic, is_pattern):
    """(kafka-python 1780, kafka 23213) The commit was repeated until its deadline, and each rebalance waited for it."""
    gone, kept = f"{topic}.a", f"{topic}.b"
    for name in (gone, kept):
        await make(kafka, name)
    async with kafka.connect() as bus:
        entries = f"{topic}.*" if is_pattern else [gone, kept]
        async with bus.subscribe(entries, group_id=GROUP, ack="manual") as messages:
            for name in (gone, kept):
                await bus.publish(name, b"0")
            taken = await take(messages, 2)
            await Operator(kafka).delete(gone)
            for message in taken:
                await message.ack()
            await messages.commit()
            # The deletion rebalances the group, which may deliver the message again before it is acknowledged.
            while await committed(kafka, kept, GROUP) != 1:
                for message in await take(messages, 1):
                    await message.ack()
                await messages.commit()
            assert await committed(kafka, kept, GROUP) == 1


@pytest.mark.faults
async def test_more_partitions_than_the_broker_stores_in_one_batch_are_committed(monkeypatch):
    """(kafka 1484, librdkafka 3866) By default, a batch of offsets is full with about 10,000 partitions."""
    monkeypatch.setattr(member, "_COMMITTED_AT_ONCE", 50)
    with own_broker("kafka") as (_, kafka):
        names = [f"t.{number}" for number in range(280)]
        async with administering(kafka) as admin:
            await admin.create_topics([NewTopic(name, 1, 1) for name in names])
        async with kafka.connect() as bus:
            async with bus.subscribe("other", group_id="other"):
                await Operator(kafka).set("__consumer_offsets", "max.message.bytes", "12000")
            async with bus.subscribe(names, group_id=GROUP, ack="manual") as messages:
                await asyncio.gather(*(bus.publish(name, b"x") for name in names))
                for message in await take(messages, len(names)):
                    await message.ack()
                await messages.commit()
                assert [await committed(kafka, name, GROUP) for name in (names[0], names[-1])] == [1, 1]
            await Operator(kafka).set("__consumer_offsets", "max.message.bytes", "2000")
            with pytest.raises(BusError, match=r"message\.max\.bytes"):
                await bus.subscribe(names, group_id="too-many").__aenter__()


@pytest.mark.parametrize("group_id", [None, GROUP], ids=["alone", "group"])
@pytest.mark.parametrize("limits", [(100_000, 100_000), (10_000_000, 10_000)], ids=["full answer", "large batches"])
async def test_a_backlog_in_one_partition_does_not_delay_the_others(kafka, topic, monkeypatch, group_id, limits):
    """(librdkafka 1854, Dekaf 2256) An answer is full before a broker comes to the last partition of the request, and only the
    first partition with records gives a batch that is larger than ``MSIGHT_KAFKA_FETCH_BYTES``."""
    of_answer, of_partition = limits
    monkeypatch.setattr(requests, "_FETCH_MAX_BYTES", of_answer)
    await make(kafka, topic, 3)
    async with kafka.connect(MSIGHT_KAFKA_BATCH_BYTES="20000", MSIGHT_KAFKA_FETCH_BYTES=str(of_partition)) as bus:
        for _ in range(30):
            async with bus.publisher(topic, spread=True) as publisher:
                await publisher.send(bytes(19_000))
        async with bus.subscribe(topic, group_id=group_id, start="earliest") as messages:
            first = [message.position[0] for message in await take(messages, 20)]
    assert set(first) == {0, 1, 2}


async def test_an_idle_member_keeps_its_membership(kafka, topic):
    """(kafka-python 1787, 2610) No message comes for two sessions."""
    async with kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="1.5") as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            member = messages._at_broker.member.member_id
            await asyncio.sleep(3.5)  # two sessions and more
            await bus.publish(topic, b"0")
            assert await numbers(messages, 1) == [0]
            await messages.commit()
            assert messages._at_broker.member.member_id == member


async def test_a_message_that_is_too_large_fails_alone(kafka, topic):
    """(librdkafka 488, kafka-python 841, 2426) Neither those beside it nor in silence."""
    await make(kafka, topic, 1, **{"max.message.bytes": "2000"})
    async with kafka.connect() as bus:
        results = await outcomes(*(bus.publish(topic, bytes(5000 if i == 10 else 100)) for i in range(20)))
    assert [i for i, result in enumerate(results) if result is not None] == [10]
    assert isinstance(results[10], MessageTooLargeError)


async def test_a_message_larger_than_a_segment_is_a_message_too_large_error(kafka, topic):
    """(wolff, emqx 15906) RECORD_LIST_TOO_LARGE: max.message.bytes is above segment.bytes. Others retry for ever."""
    await make(kafka, topic, 1, **{"max.message.bytes": "4000000", "segment.bytes": "1048576"})
    async with kafka.connect() as bus:
        with pytest.raises(MessageTooLargeError):
            await bus.publish(topic, bytes(2_000_000))
        await bus.publish(topic, b"x")


async def test_records_of_a_partition_that_is_new_to_a_group_are_read_from_its_beginning(kafka, topic, monkeypatch):
    """(sarama 1739, librdkafka 461) They were published before the group knew of the partition; its start is latest."""
    monkeypatch.setattr(consumer, "_LOOK_EVERY", 1.0)
    await make(kafka, topic)
    async with kafka.connect() as bus, kafka.connect() as other, bus.subscribe(topic, group_id=GROUP) as messages:
        await Operator(kafka).add_partitions(topic, 3)
        keys = [f"k{number}" for number in range(30)]
        for number, key in enumerate(keys):
            await other.publish(topic, b"%d" % number, key=key)
        assert sorted(await numbers(messages, 30)) == list(range(30))
        assert {where.partition for where in messages._at_broker.partitions} == {0, 1, 2}


@pytest.mark.faults
async def test_an_idle_producer_whose_id_has_expired_continues():
    """(librdkafka 3584, redpanda 22670) The broker has forgotten its sequence numbers meanwhile."""
    expire = ["producer.id.expiration.ms=500", "producer.id.expiration.check.interval.ms=100"]
    with own_broker("kafka", expire) as (_, kafka):
        async with kafka.connect() as bus, bus.subscribe("t") as messages:
            for number in range(3):
                await bus.publish("t", b"%d" % number)
            await asyncio.sleep(2)
            for number in range(3, 6):
                await bus.publish("t", b"%d" % number)
            assert await numbers(messages, 6) == list(range(6))


@pytest.mark.faults
@pytest.mark.timeout(120)
async def test_subscriptions_that_are_idle_during_a_restart_receive_later_messages():
    """(confluent-kafka-python 173, kafka-python 1419, 1477, aiokafka 399, 517, librdkafka 947) The broker was away longer than a
    session, and one topic of several is published on."""
    settings = {
        **QUICKLY,
        "MSIGHT_KAFKA_SESSION_TIMEOUT": "2",
        "MSIGHT_CONNECT_TIMEOUT": "3",
        "MSIGHT_PUBLISH_TIMEOUT": "2",
    }
    with own_broker("kafka") as (broker, kafka):
        async with kafka.connect(**settings) as bus:
            subscriptions = [bus.subscribe(f"t{number}", group_id=GROUP) for number in range(3)]
            for messages in subscriptions:
                await messages.__aenter__()
                await bus.publish(messages.topic, b"0")
                await numbers(messages, 1)
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(4)
            assert (await outcomes(bus.publish("t1", b"never")))[0] is not None
            await asyncio.to_thread(broker.restart)
            async with asyncio.timeout(40):
                while (await outcomes(bus.publish("t1", b"1")))[0] is not None:
                    pass
            received = b""
            while received != b"1":
                received = (await take(subscriptions[1], 1))[0].payload
            assert all(messages.stats.delivered == 1 for messages in (subscriptions[0], subscriptions[2]))


@pytest.mark.faults
async def test_connections_whose_authentication_expires_are_replaced_without_a_warning(caplog):
    """(aiokafka 1105, librdkafka 3293, kafkajs 492) The broker closes each at its next request, hourly on Amazon MSK."""
    with kafka_with_passwords("connections.max.reauth.ms=1500") as kafka:
        events: list = []
        async with (
            kafka.connect(events=events) as bus,
            bus.subscribe("t", group_id=GROUP) as grouped,
            bus.subscribe("t") as live,
        ):
            for number in range(60):
                await bus.publish("t", b"%d" % number)
                await asyncio.sleep(0.1)
            for messages in (grouped, live):
                assert await numbers(messages, 60) == list(range(60))
        assert events == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
