"""What a log makes possible: a node goes on where it was, and nothing that it took is lost."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import BusError, BytesData
from msight_bus.nodes import NodeConfig, Outgoing
from tests.support.kafka_admin import make
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running, start


@pytest.fixture
def name(topic):
    """A node's name that no other test uses, because it names the group."""
    return topic.replace(".", "-")


async def test_a_node_goes_on_where_it_was(kafka, topic, name):
    node = Collect(NodeConfig(name=name, subscribe_topic_name=topic))
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        async with running(bus, node):
            await bus.publish(topic, b"first")
            await node.until(1)
        await bus.publish(topic, b"while it was away")
        async with running(bus, node):
            assert await node.until(2) == [b"first", b"while it was away"]


async def test_what_is_left_out_is_done(kafka, topic, name):
    """Neither what cannot be decoded nor what a gap skips may hold the position back."""
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


async def test_a_failure_behind_handlers_that_are_done_brings_its_input_again(kafka, topic, name):
    """Later inputs may be done before an earlier one: the position must not pass it."""
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
async def test_a_refused_output_takes_no_other_with_it(kafka, topic, name, concurrency):
    """A compacted topic refuses records without a key, each known only when it is acknowledged."""
    out = f"{topic}.out"
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
