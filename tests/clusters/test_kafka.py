"""A cluster of three Kafka brokers loses one: no acknowledged message is lost, and groups and publishers continue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest
from aiokafka import TopicPartition

from msight_bus.backends.kafka.topics import TopicDirectory
from msight_bus.errors import PublishTimeoutError
from msight_bus.events import Disconnected
from tests.support.clusters import kafka_cluster
from tests.support.ledger import Ledger
from tests.support.rig import seen, until

pytestmark = pytest.mark.timeout(120)

PATIENT = {"MSIGHT_PUBLISH_TIMEOUT": "45"}
"""Seconds; until the cluster has given up the dead broker there is nobody to acknowledge."""

KEYS = [f"camera {number}" for number in range(8)]


@pytest.fixture(scope="module")
def cluster():
    with kafka_cluster() as running:
        yield running


async def leader_of(bus, topic):
    """The number of the broker that leads the first partition."""
    client = bus.core.backend._client
    client.track(topic)
    await client.update_metadata()
    return client.leader(TopicPartition(topic, 0))


async def test_a_topic_with_too_few_replicas_is_a_warning(cluster, caplog):
    async with cluster.connect() as bus:
        await bus.publish("safe", b"x")
        assert "MSIGHT_KAFKA_REPLICATION" not in caplog.text
    async with cluster.connect(MSIGHT_KAFKA_REPLICATION="1") as bus:
        with contextlib.suppress(PublishTimeoutError):
            await bus.publish("weak", b"x")
        assert "Topic weak has 1 replica and min.insync.replicas=2 on a cluster of 3 brokers" in caplog.text


async def test_three_replicas_are_no_warning_while_a_broker_does_not_report_the_settings_of_the_topic(
    cluster, caplog, monkeypatch
):
    """A broker that has not learned of the new topic yet."""

    async def nothing(*_):
        return {}

    monkeypatch.setattr(TopicDirectory, "_options_of", nothing)
    async with cluster.connect() as bus:
        await bus.publish("unreported", b"x")
    assert "min.insync.replicas" not in caplog.text


async def test_no_acknowledged_message_is_lost_when_a_leader_is_killed(cluster):
    events = []
    async with cluster.connect(events=events, **PATIENT) as bus, cluster.connect(events=events) as other:
        await assert_nothing_is_lost(cluster, bus, other, lambda node: node.kill())
        await bus.publish("made.meanwhile", b"x")
    assert not seen(events, Disconnected)  # from the cluster, that is


@pytest.mark.faults
@pytest.mark.timeout(170)
@pytest.mark.parametrize("end", ["kill", "freeze"])
async def test_a_publish_waits_for_a_new_leader_until_its_deadline(end):
    """Longer than the deadline of one request (MSIGHT_CONNECT_TIMEOUT)."""
    with kafka_cluster(session_seconds=15) as cluster:
        async with cluster.connect(**PATIENT) as bus, cluster.connect() as other:
            await assert_nothing_is_lost(cluster, bus, other, lambda node: getattr(node, end)())


async def assert_nothing_is_lost(cluster, bus, other, end):
    """End a partition's leader amid publishing and consuming, of which both have to go on."""
    ledger, acknowledged, received, done = Ledger(), Counter(), Counter(), asyncio.Event()

    async def publish(key):
        while not done.is_set():
            number = acknowledged[key] + 1
            await bus.publish("cameras", b"%d" % number, key=key)
            ledger.acknowledged(key, number, time.monotonic())
            acknowledged[key] = number

    async def consume():
        async with other.subscribe("cameras", group_id="g", start="earliest") as messages:
            async for message in messages:
                ledger.delivered(message.key, int(message.payload), time.monotonic())
                received[message.key] = max(received[message.key], int(message.payload))

    async with asyncio.TaskGroup() as tasks:
        consuming = tasks.create_task(consume())
        publishing = [tasks.create_task(publish(key)) for key in KEYS]
        await until(lambda: min(received[key] for key in KEYS) > 20)
        await asyncio.to_thread(end, cluster.nodes[await leader_of(bus, "cameras") - 1])
        before = Counter(acknowledged)
        await until(lambda: all(acknowledged[key] > before[key] + 50 for key in KEYS), within=50)
        done.set()
        await asyncio.wait(publishing)
        await until(lambda: all(received[key] >= acknowledged[key] for key in KEYS), within=50)
        consuming.cancel()
    account = ledger.account()
    assert account.acknowledged == account.delivered == sum(acknowledged.values())
    assert (account.silent, account.damaged, account.reordered) == (0, 0, 0)
