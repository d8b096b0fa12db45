"""Joining a group with members of other clients, after members that were killed, and with a start time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import NewTopic

from msight_bus import ConnectionLostError
from msight_bus.backends.kafka import group
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering
from tests.support.kafka_records import Rec, batch_of, raw_producer
from tests.support.librdkafka import CLASSIC, PROTOCOLS, Member
from tests.support.receiving import numbers
from tests.support.rig import until

MAKES = pytest.mark.parametrize("options", PROTOCOLS.values(), ids=PROTOCOLS)


def owned(messages):
    """The numbers of the partitions of a subscription."""
    return {where.partition for where in messages._at_broker.partitions}


@asynccontextmanager
async def other_member(kafka, topic, options, partitions=4):
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1)])
    member = Member(kafka, topic, topic, **options)
    member.start()
    try:
        await until(lambda: len(member.partitions) == partitions)
        yield member
    finally:
        await member.stop()


# -- beside another make


@MAKES
async def test_joining_beside_another_make_waits_for_nothing(kafka, topic, options, monkeypatch):
    """Nobody waits for what a member of another make would decide."""

    async def never(*_):
        raise AssertionError("waits for another member's decision")

    monkeypatch.setattr(group.GroupConsumer, "_decided_elsewhere", never)
    async with other_member(kafka, topic, options) as member, kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=topic) as messages:
            await until(lambda: owned(messages))
            own = owned(messages)
            await until(lambda: own.isdisjoint(member.partitions))
            for number in range(60):
                await bus.publish(topic, b"%d" % number, key=f"k{number}")
            await numbers(messages, 10)


async def test_two_members_beside_another_make_share_what_it_leaves(kafka, topic):
    async with other_member(kafka, topic, CLASSIC, partitions=6) as member, kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=topic) as one, bus.subscribe(topic, group_id=topic) as two:

            def shared():
                return [sorted(owned(each)) for each in (one, two)]

            await until(lambda: [len(each) for each in shared()] == [2, 2] and len(member.partitions) == 2)
            assert sorted(sum(shared(), member.partitions)) == list(range(6))


async def test_what_comes_from_another_make_starts_where_it_was_joined(kafka, topic):
    """The other has committed nothing of it, and what was published since would be skipped, or all before it be read again."""
    commits_nothing = {**CLASSIC, "enable.auto.commit": False}
    async with other_member(kafka, topic, commits_nothing, partitions=2) as member, kafka.connect() as bus:
        async with raw_producer(kafka) as produce:
            for partition in (0, 1):
                await produce(topic, batch_of(Rec(b"0")), partition)
            async with bus.subscribe(topic, group_id=topic) as messages:
                await until(lambda: len(member.partitions) == 1)
                await asyncio.sleep(0)
                (elsewhere,) = {0, 1} - owned(messages)
                await member.stop(leaves=True)
                await produce(topic, batch_of(Rec(b"1")), elsewhere)
                assert await numbers(messages, 1) == [1]


# -- after members that left without a word


async def leave_without_a_word(kafka, topic, session_timeout_ms):
    """Be the only member of a group that is then gone, for the group until its session expires."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=str(kafka.settings().kafka.servers[0]),
        group_id=topic,
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=500,
    )
    await consumer.start()
    await until(consumer.assignment)

    async def nothing():
        pass

    consumer._coordinator._maybe_leave_group = nothing
    await consumer.stop()


async def test_a_dead_member_is_waited_for_longer_than_connecting_takes(kafka, topic, monkeypatch, caplog):
    monkeypatch.setattr(group, "_WARNING_INTERVAL", 0.5)
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, 4, 1)])
    await leave_without_a_word(kafka, topic, 3000)
    async with kafka.connect(MSIGHT_CONNECT_TIMEOUT="1.5") as bus:
        with caplog.at_level(logging.WARNING, "msight_bus"):
            async with bus.subscribe(topic, group_id=topic) as messages:
                assert owned(messages) == {0, 1, 2, 3}
    assert any("Joining the group" in line and topic in line for line in caplog.messages)


async def test_a_group_that_never_accepts_is_an_error(kafka, topic, monkeypatch):
    monkeypatch.setattr(group, "_JOIN_WITHIN", 1.0)
    variables = {"MSIGHT_CONNECT_TIMEOUT": "1", "MSIGHT_KAFKA_SESSION_TIMEOUT": "0.5"}
    async with kafka.connect(**variables) as bus:

        async def never(*_):
            await asyncio.sleep(10)

        monkeypatch.setattr(group.GroupConsumer, "on_partitions_assigned", never)
        with pytest.raises(ConnectionLostError, match="did not accept a member"):
            async with bus.subscribe(topic, group_id=GROUP):
                pass


# -- from a moment


def at(moment):
    """The value of our header for a message that was published at a moment."""
    nanoseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return b"%016x%016x%016x" % (1, 1, nanoseconds)


@pytest.mark.parametrize("group_id", [GROUP, None], ids=["group", "alone"])
async def test_records_of_the_first_millisecond_from_before_the_moment_are_left_out(kafka, topic, group_id):
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    start = datetime.now(UTC).replace(microsecond=123_500)
    stamps = [start + timedelta(microseconds=step) for step in (-600, -400, -1, 0, -300, 1, 700)]
    records = [Rec(b"%d" % number, headers=[(b"msight", at(stamp))]) for number, stamp in enumerate(stamps)]
    for record, stamp in zip(records, stamps, strict=True):
        record.timestamp_delta = int((stamp - stamps[0]) / timedelta(milliseconds=1) + 0.9)
    async with kafka.connect() as bus, raw_producer(kafka) as produce:
        milliseconds = int(stamps[0].timestamp() * 1000)
        await produce(topic, batch_of(*records, Rec(b"7", timestamp_delta=1), timestamp=milliseconds))
        async with bus.subscribe(topic, group_id=group_id, start=start) as messages:
            assert await numbers(messages, 4) == [3, 5, 6, 7]
