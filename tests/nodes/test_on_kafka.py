"""Nodes on a log: a restarted node continues at its position, and no input is lost."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import BusError, BytesData
from msight_bus.nodes import NodeConfig, Outgoing, SourceNode
from msight_bus.topics import ALIVE_TOPIC
from tests.support.kafka_admin import administering, committed, make
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running, start
from tests.support.receiving import take


@pytest.fixture
def name(topic):
    """A node's name that no other test uses, because it names the group."""
    return topic.replace(".", "-")


async def test_a_restarted_node_continues_at_its_position(kafka, topic, name):
    node = Collect(NodeConfig(name=name, subscribe_topic_name=topic))
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        async with running(bus, node):
            await bus.publish(topic, b"first")
            await node.until(1)
        await bus.publish(topic, b"while it was away")
        async with running(bus, node):
            assert await node.until(2) == [b"first", b"while it was away"]


async def test_undecodable_and_skipped_inputs_are_done(kafka, topic, name):
    """Neither undecodable inputs nor inputs skipped by ``gap`` delay the committed position."""
    damaged = BytesData(data=b"x").serialize()[:-1]
    node = Collect(NodeConfig(name=name, subscribe_topic_name=topic, gap=1))
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        async with running(bus, node):
            for payload in (b"0", b"skipped", damaged, b"skipped", b"4", b"skipped"):
                await bus.publish(topic, payload)
            await node.until(2)
            while node._node_run.meter.messages_in < 6:
                await asyncio.sleep(0.005)
        async with running(bus, node):
            await bus.publish(topic, b"next")
            assert await node.until(3) == [b"0", b"4", b"next"]


async def test_the_next_input_does_not_wait_for_the_acknowledgement(kafka, topic, name):
    unsettled = []

    async def echo(data):
        unsettled.append(node._node_run.unfinished())
        return data

    node = Apply(NodeConfig(name=name, subscribe_topic_name=topic, publish_topic_name=f"{topic}.out"), echo)
    sink = Collect(NodeConfig(name=f"{name}-sink", subscribe_topic_name=f"{topic}.out"))
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        async with running(bus, sink, node):
            async with bus.publisher(topic) as publisher:
                for i in range(500):
                    await publisher.send(b"%d" % i)
            assert await sink.until(500) == [b"%d" % i for i in range(500)]
        assert max(unsettled) > 10
        assert node.left == 0
        async with running(bus, sink, node):
            await bus.publish(topic, b"only this")
            await sink.until(501)
        assert sink.items[500:] == [b"only this"]


async def test_a_failed_input_is_redelivered_although_later_ones_are_done(kafka, topic, name):
    """Later inputs can be done before an earlier one: the position must not pass the earlier one."""
    handled = []
    fail = True

    async def handle(data):
        if data == b"1" and fail:
            while len(handled) < 4:
                await asyncio.sleep(0.001)
            raise ZeroDivisionError
        handled.append(data)

    node = Apply(
        NodeConfig(name=name, subscribe_topic_name=topic, publish_topic_name=f"{topic}.out", concurrency=8), handle
    )
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        task = await start(bus, node)
        for i in range(5):
            await bus.publish(topic, b"%d" % i)
        with pytest.raises(ZeroDivisionError):
            await task
        assert sorted(handled) == [b"0", b"2", b"3", b"4"]
        fail = False
        handled.clear()
        async with running(bus, node):
            while b"1" not in handled or b"4" not in handled:
                await asyncio.sleep(0.005)
        assert sorted(handled) == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_refused_output_affects_no_other_output(kafka, topic, name, concurrency):
    """A compacted topic refuses records without a key; the refusal arrives instead of the acknowledgement."""
    out = f"{topic}.out"
    await make(kafka, topic)
    await make(kafka, out, **{"cleanup.policy": "compact"})

    async def step(data):
        return data if int(data) % 5 == 3 else Outgoing(data, key=data.decode())

    node = Apply(
        NodeConfig(
            name=name,
            subscribe_topic_name=topic,
            publish_topic_name=out,
            action_on_error="continue",
            concurrency=concurrency,
        ),
        step,
    )
    sink = Collect(NodeConfig(name=f"{name}-sink", subscribe_topic_name=out))
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        async with running(bus, sink, node):
            for number in range(20):
                await bus.publish(topic, b"%d" % number)
            assert sorted(map(int, await sink.until(16))) == [n for n in range(20) if n % 5 != 3]
        assert node.metrics().errors == 4
    assert await committed(kafka, topic, f"{name}_group") == 20


@pytest.mark.parametrize("plain", [True, False])
async def test_a_refused_output_of_a_source_affects_no_other_output(kafka, topic, plain):
    await make(kafka, topic, **{"cleanup.policy": "compact"})

    class Mixed(SourceNode):
        async def stream(self):
            for number in range(20):
                data = b"%d" % number
                yield (data if plain else [data]) if number % 5 == 3 else Outgoing(data, key="k")
                while self.left:  # a source counts one refusal for all outputs in flight
                    await asyncio.sleep(0.001)

    node = Mixed(NodeConfig(name="source", publish_topic_name=topic, action_on_error="continue"))
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        await node.run(bus)
        numbers = [int(message.payload) for message in await take(messages, 16)]
    assert numbers == [number for number in range(20) if number % 5 != 3]
    assert node.metrics().errors == 4


async def test_inputs_that_another_worker_takes_over_are_not_dropped(kafka, topic, name):
    """The queued inputs of a revoked partition are delivered to the worker that joined."""
    go_on = asyncio.Event()

    class Slow(Collect):
        async def on_message(self, data):
            await go_on.wait()
            await super().on_message(data)

    await make(kafka, topic, 4)
    first, second = (Slow(NodeConfig(name=name, subscribe_topic_name=topic)) for _ in range(2))
    async with kafka.connect() as bus, kafka.connect() as other, running(bus, first):
        for number in range(40):
            await bus.publish(topic, b"%d" % number, key=str(number))
        async with asyncio.timeout(DEADLINE):
            while first.left < 40:
                await asyncio.sleep(0.005)
            async with running(other, second):
                while not second.left:
                    await asyncio.sleep(0.005)
                assert first._node_run.subscription.stats.dropped["revoked"]
                go_on.set()
                while {*first.items, *second.items} != {b"%d" % number for number in range(40)}:
                    await asyncio.sleep(0.005)
                assert first.metrics().dropped == second.metrics().dropped == 0


async def test_a_log_has_no_liveness_topic_of_a_node(kafka, topic, name):
    node = Collect(NodeConfig(name=name, subscribe_topic_name=topic))
    async with kafka.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, node):
            await registry.wait_until(lambda nodes: name in nodes and nodes[name].status == "RUNNING")
            async with administering(kafka) as admin:
                assert not [known for known in await admin.list_topics() if known.startswith(ALIVE_TOPIC)]


async def test_the_name_of_the_node_selects_the_partition_of_outputs_without_a_key(kafka, topic):
    names = [f"camera{number}" for number in range(6)]
    await make(kafka, topic, 4)
    partitions: dict[str, set[int]] = {name: set() for name in names}
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        for name in names:
            async with bus.publisher(topic, name=name) as publisher:
                await publisher.send(name.encode())

            class Camera(SourceNode):
                async def stream(self):
                    yield self.name.encode()

            await Camera(NodeConfig(name=name, publish_topic_name=topic)).run(bus)
        for message in await take(messages, 2 * len(names)):
            partitions[message.payload.decode()].add(message.position[0])
    assert [len(used) for used in partitions.values()] == [1] * len(names)
    assert len(set.union(*partitions.values())) > 1


class Mixed(Numbers):
    """Publishes numbers; a compacted topic refuses each fifth, which has no key, and what shares its batch."""

    async def get_data(self):
        payload = await super().get_data()
        await asyncio.sleep(0)
        return payload if int(payload) % 5 == 3 else Outgoing(payload, key="k")


async def test_each_output_of_a_source_is_counted_once_as_published_or_refused(kafka, topic, name):
    await make(kafka, topic, **{"cleanup.policy": "compact"})
    node = Mixed(NodeConfig(name=name, publish_topic_name=topic, action_on_error="continue"), count=600)
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        await node.run(bus)
        metrics = node.metrics()
        assert node.status == "STOPPED"
        assert 0 < metrics.messages_out < 600
        assert metrics.messages_out + metrics.errors == 600
        async with bus.subscribe(topic, start="earliest") as messages:
            for _ in range(metrics.messages_out):
                await anext(messages)
            assert messages.stats.lag == 0
            assert messages.stats.queued == 0


async def test_a_refused_output_that_is_the_last_one_ends_a_source(kafka, topic, name):
    await make(kafka, topic, **{"cleanup.policy": "compact"})
    node = Numbers(NodeConfig(name=name, publish_topic_name=topic), count=1)
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        with pytest.raises(BusError, match=topic):
            await node.run(bus)
    metrics = node.metrics()
    assert (metrics.messages_out, metrics.errors, node.status) == (0, 1, "ERROR")
