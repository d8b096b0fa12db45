"""A broker outage is no error of a node's code: the node continues afterwards."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import DrainTimeoutError, PublishTimeoutError
from msight_bus.nodes import NodeConfig, SourceNode, run_until
from tests.support.brokers import breakable_broker, make_backend
from tests.support.kafka_admin import committed, make
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running, start
from tests.support.receiving import take
from tests.support.rig import own_broker


@pytest.fixture
def broker():
    return breakable_broker("kafka")


@pytest.fixture
def kafka(broker):
    return make_backend("kafka", broker)


class Paced(Numbers):
    """One number every few milliseconds."""

    async def get_data(self):
        await asyncio.sleep(0.005)
        return await super().get_data()


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


class Large(Numbers):
    """A megabyte every few milliseconds."""

    async def get_data(self):
        await asyncio.sleep(0.005)
        return await super().get_data() + bytes(1_000_000)


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_outputs_are_dropped_and_counted_while_the_broker_is_frozen(kind, caplog):
    caplog.set_level("INFO")
    node = Large(NodeConfig(name="node", publish_topic_name="out", while_disconnected="drop"))
    with own_broker(kind) as (broker, backend):
        async with backend.connect(MSIGHT_PUBLISH_TIMEOUT="0.2") as bus, running(bus, node):
            await until(lambda: node._node_run.meter.messages_out)
            broker.freeze()
            try:
                await until(lambda: node._node_run.meter.unsent >= 2)
                assert node.status == "RUNNING"
                away, back = map(caplog.text.count, ("Publishing waits for the broker", "Publishing resumed"))
                assert away == back + 1
                assert "write buffer full" in caplog.text
                sent = node._node_run.meter.messages_out
            finally:
                broker.thaw()
            await until(lambda: caplog.text.count("Publishing resumed") > back)
            await until(lambda: node._node_run.meter.messages_out > sent + 3)
            away, back = map(caplog.text.count, ("Publishing waits for the broker", "Publishing resumed"))
            assert back <= away


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_outputs_unconfirmed_at_the_deadline_of_the_drain_are_logged(kind, caplog):
    source, stop = Paced(NodeConfig(name="source", publish_topic_name="out")), asyncio.Event()
    with own_broker(kind) as (broker, backend):
        async with backend.connect(MSIGHT_DRAIN_TIMEOUT="0.5") as bus:
            task = asyncio.create_task(run_until(bus, source, stop=stop))
            await until(lambda: source.metrics().messages_out)
            broker.freeze()
            sent = source.metrics().messages_out
            await until(lambda: source.metrics().messages_out > sent)
            stop.set()
            try:
                with pytest.raises(DrainTimeoutError, match="left: no message, but the broker did not confirm"):
                    await task
            finally:
                broker.thaw()
    assert "Outputs may be lost" in caplog.text


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_after_the_deadline_of_a_drain_the_bus_does_not_wait_for_a_frozen_broker(kind):
    """Its own deadlines, of which closing has several in turn, would take an hour."""
    nodes = (
        Paced(NodeConfig(name="source", publish_topic_name="a")),
        Collect(NodeConfig(name="sink", subscribe_topic_name="a")),
    )
    settings = {"MSIGHT_PONG_TIMEOUT": "1200", "MSIGHT_PING_INTERVAL": "1200", "MSIGHT_DRAIN_TIMEOUT": "0.2"}
    stop = asyncio.Event()
    with own_broker(kind) as (broker, backend):
        with pytest.raises(DrainTimeoutError):
            async with backend.connect(**settings) as bus:
                task = asyncio.create_task(run_until(bus, *nodes, stop=stop))
                await nodes[1].until(3)
                broker.freeze()
                stop.set()
                await task
        broker.thaw()


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_nodes_continue_after_a_restart_of_the_broker(kind):
    source = Paced(
        NodeConfig(name="source", publish_topic_name="a", heartbeat_update_interval=0.05, while_disconnected="drop")
    )
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="a"))
    with own_broker(kind) as (broker, backend):
        async with backend.connect(MSIGHT_PUBLISH_TIMEOUT="0.1", MSIGHT_RECONNECT_MAX="0.1") as bus:
            registry = await bus.nodes()
            async with running(bus, sink, source):
                await sink.until(5)
                await asyncio.to_thread(broker.kill)
                await until(lambda: source._node_run.meter.unsent >= 2)
                await asyncio.to_thread(broker.restart)
                before = len(sink.items)
                await sink.until(before + 5)
                assert (source.status, sink.status) == ("RUNNING", "RUNNING")
                counted = source._node_run.meter.unsent
                await registry.wait_until(lambda nodes: nodes["source"].metrics.dropped >= counted)


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_a_waiting_output_is_dropped_at_once_when_the_broker_goes_down(kind):
    node = Large(NodeConfig(name="node", publish_topic_name="out", while_disconnected="drop"))
    with own_broker(kind) as (broker, backend):
        async with backend.connect(MSIGHT_PUBLISH_TIMEOUT="600") as bus, running(bus, node):
            await until(lambda: node.metrics().messages_out)
            broker.freeze()
            await until(lambda: node.left)  # the write buffer is full
            broker.kill()
            await until(lambda: node.metrics().dropped)
            await asyncio.to_thread(broker.restart)


async def test_a_log_receives_every_message_after_an_outage(broker, kafka, topic, caplog):
    class Large(SourceNode):
        async def stream(self):
            for i in range(150):
                yield b"%d:" % i + bytes(100_000)

    source = Large(NodeConfig(name="source", publish_topic_name=topic))
    sink = Collect(NodeConfig(name=topic.replace(".", "-"), subscribe_topic_name=topic))
    async with kafka.connect(MSIGHT_PUBLISH_TIMEOUT="0.3") as bus, running(bus, sink):
        broker.freeze()
        try:
            run = asyncio.create_task(source.run(bus))
            await until(lambda: "Publishing waits for the broker" in caplog.text)
        finally:
            broker.thaw()
        await run
        numbers = [int(item.split(b":")[0]) for item in await sink.until(150)]
    assert list(dict.fromkeys(numbers)) == list(range(150))
    assert source._node_run.meter.unsent == 0


async def test_an_input_that_could_not_be_dead_lettered_before_the_end_is_redelivered(broker, kafka, topic, caplog):
    published = asyncio.Event()

    class Fails(Collect):
        async def on_message(self, data):
            await super().on_message(data)
            if data == b"second":
                await published.wait()
                broker.freeze()
            raise ValueError(data)

    name, dead = topic.replace(".", "-"), f"{topic}.dead"
    node = Fails(
        NodeConfig(name=name, subscribe_topic_name=topic, dead_letter_topic_name=dead, action_on_error="continue")
    )
    await make(kafka, topic)
    async with kafka.connect(MSIGHT_PUBLISH_TIMEOUT="0.5") as bus:
        task = await start(bus, node)
        await bus.publish(topic, b"first")
        await node.until(1)
        await until(lambda: not node.left)
        try:
            await bus.publish(topic, b"second")
            published.set()
            await until(lambda: "A dead letter waits for the broker" in caplog.text)
            node.stop()
            await until(lambda: caplog.text.count("A dead letter waits for the broker") > 1)
        finally:
            broker.thaw()
        await task
    assert await committed(kafka, topic, f"{name}_group") == 1


async def test_a_source_whose_last_output_a_log_did_not_confirm_ends_with_an_error(broker, kafka, topic):

    class Last(SourceNode):
        async def stream(self):
            yield b"first"
            await anext(messages)
            broker.freeze()
            yield b"last"

    node = Last(NodeConfig(name="source", publish_topic_name=topic))
    async with kafka.connect(MSIGHT_PUBLISH_TIMEOUT="0.5") as bus, bus.subscribe(topic) as messages:
        try:
            with pytest.raises(PublishTimeoutError):
                await node.run(bus)
        finally:
            broker.thaw()
    assert node.status == "ERROR"


async def test_an_input_is_done_after_its_outputs_although_the_last_is_too_large(broker, kafka, topic):
    """Outputs accepted before the error are in flight: after a crash, the input must be redelivered."""
    waits, go_on = asyncio.Event(), asyncio.Event()

    async def step(data):
        if data == b"both":
            while node.left < 2:  # the next input must be there before the broker is frozen
                await asyncio.sleep(0.005)
            broker.freeze()
            return [b"small", bytes(3000)]
        if data == b"next":
            waits.set()
            await go_on.wait()
        return data

    out = f"{topic}.out"
    await make(kafka, topic)
    name = topic.replace(".", "-")
    node = Apply(
        NodeConfig(name=name, subscribe_topic_name=topic, publish_topic_name=out, action_on_error="continue"), step
    )
    async with kafka.connect(MSIGHT_MAX_MESSAGE_BYTES="2000") as bus, bus.subscribe(out) as outputs:
        async with running(bus, node), asyncio.timeout(DEADLINE):
            await bus.publish(topic, b"first")  # after it, the publisher knows its topic
            await take(outputs, 1)
            async with bus.publisher(topic) as publisher:
                await publisher.send(b"both")
                await publisher.send(b"next")
            try:
                await waits.wait()
                assert node.metrics().errors == 1
                assert node.left == 2
            finally:
                broker.thaw()
            go_on.set()
            assert [message.payload for message in await take(outputs, 2)] == [b"small", b"next"]
    assert await committed(kafka, topic, f"{name}_group") == 3
