"""The texts of Kafka errors: in the bus's own words, with the remedy, and without those of aiokafka."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from datetime import UTC, datetime

import pytest
from aiokafka.errors import KafkaTimeoutError

from msight_bus import BusError, ConnectionLostError, PublishTimeoutError
from msight_bus.backends.kafka import partition_writer
from msight_bus.backends.kafka.errors import translate
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import GROUP
from tests.support.kafka_admin import make
from tests.support.kafka_traffic import outcomes
from tests.support.receiving import numbers, take
from tests.support.rig import QUICKLY, own_broker, seen, until

GROUPS = pytest.mark.parametrize("group_id", [None, GROUP], ids=["alone", "group"])


async def test_a_record_without_a_key_on_a_compacted_topic(kafka, topic):
    await make(kafka, topic, 1, **{"cleanup.policy": "compact"})
    async with kafka.connect() as bus:
        with pytest.raises(BusError) as caught:
            await bus.publish(topic, b"x")
    for part in (topic, "compact", "key="):
        assert part in str(caught.value)


async def test_a_clock_that_is_ahead(kafka, topic, monkeypatch):
    monkeypatch.setattr(partition_writer, "time_ns", lambda: time.time_ns() + 7200 * 10**9)
    await make(kafka, topic, 1, **{"message.timestamp.after.max.ms": "3600000"})
    async with kafka.connect() as bus:
        with pytest.raises(BusError) as caught:
            await bus.publish(topic, b"x")
    for part in (topic, "clock", "message.timestamp.after.max.ms"):
        assert part in str(caught.value)


@pytest.mark.parametrize("ahead", [3500, 3700])
async def test_a_clock_that_jumps_ahead_and_back_stops_nothing(kafka, topic, monkeypatch, ahead):
    """An hour is what a broker permits by default; what is refused harms nothing that follows on the same partition."""
    await make(kafka, topic)
    shift = 0
    monkeypatch.setattr(partition_writer, "time_ns", lambda: time.time_ns() + shift)
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP, lifespan=60.0) as messages:
        await bus.publish(topic, b"0")
        shift = ahead * 10**9
        refused = [await outcomes(bus.publish(topic, b"%d" % number)) for number in range(1, 4)]
        shift = 0
        await bus.publish(topic, b"4")
        if ahead < 3600:
            assert refused == [[None]] * 3
            received = await take(messages, 5)
            assert [int(message.payload) for message in received] == list(range(5))
            assert received[2].published_at > time.time() + ahead - 60
        else:
            assert all("clock" in str(error) for (error,) in refused)
            assert await numbers(messages, 2) == [0, 4]


async def test_a_group_that_refuses_a_member():
    limits = ["group.max.session.timeout.ms=5000", "group.max.size=1"]
    with own_broker("kafka", limits) as (_, kafka):
        async with kafka.connect() as bus:
            with pytest.raises(BusError, match=r"MSIGHT_KAFKA_SESSION_TIMEOUT.*group\.max\.session\.timeout\.ms"):
                await bus.subscribe("t", group_id=GROUP).__aenter__()
        async with (
            kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="5") as bus,
            bus.subscribe("t", group_id=GROUP) as messages,
        ):
            with pytest.raises(BusError, match=r"group\.max\.size"):
                await bus.subscribe("t", group_id=GROUP).__aenter__()
            await bus.publish("t", b"0")
            assert await numbers(messages, 1) == [0]


@GROUPS
async def test_a_start_before_1970_is_the_beginning(kafka, topic, group_id):
    async with kafka.connect() as bus:
        for number in range(3):
            await bus.publish(topic, b"%d" % number)
        async with bus.subscribe(topic, group_id=group_id, start=datetime(1960, 1, 1, tzinfo=UTC)) as messages:
            assert await numbers(messages, 3) == [0, 1, 2]


@GROUPS
async def test_a_start_in_a_partition_that_does_not_exist(kafka, topic, group_id):
    async with kafka.connect() as bus:
        with pytest.raises(ValueError, match=rf"partition 7.*{topic}.*4 partitions"):
            async with bus.subscribe(topic, group_id=group_id, start={7: 1}):
                pass


def test_only_a_publish_that_times_out_has_an_unknown_outcome():
    error = KafkaTimeoutError()
    assert isinstance(translate(error, "publish"), PublishTimeoutError)
    assert isinstance(translate(error, "subscribe"), ConnectionLostError)
    assert not isinstance(translate(error, "subscribe"), PublishTimeoutError)


@pytest.mark.faults
@pytest.mark.timeout(100)
async def test_an_outage_is_told_in_our_words_only(caplog):
    caplog.set_level(logging.WARNING)
    events = []
    with own_broker("kafka") as (broker, kafka):
        async with kafka.connect(events=events, MSIGHT_CONNECT_TIMEOUT="2", **QUICKLY) as bus:
            async with bus.subscribe("t") as live, bus.subscribe("t", group_id=GROUP) as member:
                await bus.publish("t", b"x")
                await take(live, 1)
                await take(member, 1)
                await asyncio.to_thread(broker.kill)
                publishing = asyncio.create_task(bus.publish("t", b"y"))
                await until(lambda: seen(events, Disconnected))
                await asyncio.sleep(3)
                await asyncio.to_thread(broker.restart)
                await asyncio.wait((publishing,))
                publishing.exception()
                await until(lambda: seen(events, Reconnected))
                await bus.publish("t", b"z")
                await take(live, 1)
                await take(member, 1)
    gc.collect()
    await asyncio.sleep(0)
    foreign = [record for record in caplog.records if not record.name.startswith("msight_bus")]
    assert [f"{record.name}: {record.getMessage()}" for record in foreign] == []
