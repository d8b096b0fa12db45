"""Faults of topics, replicas, groups and transactions on Kafka. Reading creates, joins and commits nothing."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from msight_bus import brokers
from msight_bus.backends.kafka.client import client_options
from tests.support.brokers import GROUP, make_backend
from tests.support.commands import command, in_a_thread, publishing
from tests.support.examining import examine
from tests.support.kafka_admin import administering, make
from tests.support.librdkafka import PROTOCOLS, Member
from tests.support.servers import kafka_with_passwords, start
from tests.support.waiting import wait_until

QUICKLY = {"MSIGHT_CONNECT_TIMEOUT": "3"}


def topics_of(kafka):
    async def ask():
        async with administering(kafka) as admin:
            return set(await admin.list_topics()), set(await admin.list_consumer_groups())

    return asyncio.run(ask())


def test_a_topic_that_does_not_exist_and_is_not_created(kafka, topic):
    before = topics_of(kafka)
    status, found = examine(kafka, topic, MSIGHT_KAFKA_CREATE_TOPICS="false")
    assert (status, set(found)) == (1, {"missing topic"})
    assert "`export MSIGHT_KAFKA_CREATE_TOPICS=true`" in found["missing topic"]["advice"]
    assert set(examine(kafka, topic)[1]) == {"arrival"}
    assert set(examine(kafka, topic, MSIGHT_KAFKA_REPLICATION="5")[1]) == {"missing topic"}
    created, joined = (after - earlier for after, earlier in zip(topics_of(kafka), before, strict=True))
    assert not [name for name in created if name.startswith(topic)]
    assert not [name for name, _ in joined if "doctor" in name]


@pytest.mark.faults
def test_a_topic_that_the_user_is_not_allowed_to_create(topic):
    lines = [
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS;User:bob",
    ]
    with kafka_with_passwords(*lines) as kafka:
        status, found = examine(kafka, topic)
        assert status == 1
        assert re.search(
            "cannot be created: (Topic|Cluster)AuthorizationFailedError", found["missing topic"]["problem"]
        )
        assert f"--create --topic {topic}`" in found["missing topic"]["advice"]
        _, found = examine(kafka, topic, MSIGHT_KAFKA_SASL_USERNAME="bob")
        assert "missing topic" not in found


def test_fewer_in_sync_replicas_than_needed_and_the_advice_ends_it(kafka, topic):
    asyncio.run(make(kafka, topic, **{"min.insync.replicas": "2"}))
    status, found = examine(kafka, topic)
    assert (status, set(found)) == (1, {"in-sync replicas", "arrival"})
    assert "partition 0 has 1 in-sync replica; min.insync.replicas=2" in found["in-sync replicas"]["problem"]
    follow(kafka, topic, found["in-sync replicas"]["advice"])
    assert set(examine(kafka, topic)[1]) == {"arrival"}


def follow(kafka, topic, advice):
    """Set the option of the topic that the advice names."""
    name, value = re.search(r"([a-z]+\.[a-z]+\.[a-z]+)=(\d+)`", advice).groups()

    async def change():
        async with administering(kafka) as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs={name: value})])

    asyncio.run(change())


def test_a_message_that_a_topic_does_not_accept_and_the_advice_ends_it(kafka, topic):
    asyncio.run(make(kafka, topic))
    status, found = examine(kafka, topic, "--message-bytes", "2000000")
    assert (status, set(found)) == (1, {"message size", "arrival"})
    assert "is larger than 1,048,588 bytes (max.message.bytes of" in found["message size"]["problem"]
    follow(kafka, topic, found["message size"]["advice"])
    assert set(examine(kafka, topic, "--message-bytes", "2000000")[1]) == {"arrival"}


@pytest.mark.timeout(120)
def test_a_group_whose_members_idle_because_nothing_has_a_key_and_the_advice_ends_it(kafka, topic):
    asyncio.run(make(kafka, topic, partitions=4))
    group = f"{GROUP}.{topic}"

    async def members(bus, ready, stop):
        async with bus.subscribe(topic, group_id=group) as one, bus.subscribe(topic, group_id=group) as two:

            async def read(subscription):
                async for _ in subscription:
                    pass

            readers = [asyncio.create_task(read(one)), asyncio.create_task(read(two))]
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.05)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)

    with in_a_thread(kafka, members):
        with publishing(kafka, {topic: lambda _: b"x"}, rate=20):
            status, found = examine(kafka, topic, seconds=1)
        assert (status, set(found)) == (1, {"idle members"})
        assert f"One of 2 members of the group {group}" in found["idle members"]["problem"]
        assert "`export MSIGHT_KAFKA_UNKEYED=spread`" in found["idle members"]["advice"]
        with publishing(kafka, {topic: lambda _: b"x"}, rate=20, key="one"):
            assert examine(kafka, topic, seconds=1) == (0, {})
        spread = kafka.__class__(kafka.name, {**kafka.env, "MSIGHT_KAFKA_UNKEYED": "spread"})
        with publishing(spread, {topic: lambda _: b"x"}, rate=20):
            assert examine(kafka, topic, seconds=1) == (0, {})
    asyncio.run(nothing_committed_by_others(kafka))


@pytest.mark.timeout(120)
def test_groups_of_other_makes_whose_members_idle_also_with_kip_848(kafka, topic):
    asyncio.run(make(kafka, topic, partitions=4))
    groups = {f"{GROUP}.{topic}.{number}": options for number, options in enumerate(PROTOCOLS.values())}
    members = [Member(kafka, topic, group, **options) for group, options in groups.items() for _ in range(2)]
    for member in members:
        member.start()
    try:
        wait_until(lambda: all(len(member.partitions) == 2 for member in members), within=60)
        with publishing(kafka, {topic: lambda _: b"x"}, rate=20):
            found = command(kafka, "doctor", topic, "--observe", "1", "--json").stdout.splitlines()
    finally:
        for member in members:
            asyncio.run(member.stop())
    problems = sorted([one["problem"] for one in map(json.loads, found) if one.get("check") == "idle members"])
    assert [problem.split(" gets all messages")[0] for problem in problems] == [
        f"One of 2 members of the group {group}" for group in groups
    ]


async def nothing_committed_by_others(kafka):
    async with administering(kafka) as admin:
        assert not [name for name, _ in await admin.list_consumer_groups() if "doctor" in name]


@pytest.mark.timeout(120)
def test_a_partition_that_an_open_transaction_holds_back(kafka, topic):
    asyncio.run(make(kafka, topic))

    async def transacting(bus, ready, stop):
        options = client_options(kafka.settings())
        producer = AIOKafkaProducer(**options, transactional_id=topic, transaction_timeout_ms=60_000)
        await producer.start()
        try:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"held")
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.05)
            await producer.abort_transaction()
        finally:
            await producer.stop()

    with in_a_thread(kafka, transacting):
        status, found = examine(kafka, topic)
    assert (status, set(found)) == (1, {"transactions"})
    assert "blocks 1 record of partition 0, from offset 0 on" in found["transactions"]["problem"]
    assert f"--topic {topic} --partition 0 --start-offset 0`" in found["transactions"]["advice"]
    assert set(examine(kafka, topic)[1]) == {"arrival"}


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_advertised_listeners_that_cannot_be_reached():
    dead = brokers.free_port()
    with start("kafka", config=[f"advertised.listeners=CLIENT://127.0.0.1:{dead}"]) as broker:
        status, found = examine(make_backend("kafka", broker), **QUICKLY)
    assert status == 1
    assert f"advertises 127.0.0.1:{dead}, which cannot be reached" in found["advertised.listeners"]["problem"]
    assert "`advertised.listeners` of broker" in found["advertised.listeners"]["advice"]
