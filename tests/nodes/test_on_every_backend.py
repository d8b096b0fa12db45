"""The same pipeline on each backend; what differs is read from its capabilities."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from msight_bus import BytesData, CapabilityWarning
from msight_bus.nodes import NodeConfig, Outgoing, run_until
from tests.support.brokers import GROUP
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running, start
from tests.support.receiving import take


async def test_a_pipeline_and_its_end(backend, topic):
    async def wrap(data):
        return [BytesData(data=data, frame_id=int(data)), b"raw"]

    source = Numbers(NodeConfig(name="source", publish_topic_name=f"{topic}.a"), count=200)
    step = Apply(
        NodeConfig(name="step", subscribe_topic_name=f"{topic}.a", publish_topic_name=f"{topic}.b", concurrency=4),
        wrap,
    )
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name=f"{topic}.b"))
    async with backend.connect() as bus, asyncio.timeout(DEADLINE * 2):
        stop = asyncio.Event()
        # What a log keeps may be read later, so there the end of the sources is not yet the end of the stream.
        by_itself = not bus.capabilities.persistence
        run = asyncio.create_task(run_until(bus, source, step, sink, stop=stop, end_with_sources=by_itself))
        if not by_itself:
            await sink.until(400)
            stop.set()
        await run
    assert [item.frame_id for item in sink.items[::2]] == list(range(200))
    assert set(sink.items[1::2]) == {b"raw"}
    assert {node.status for node in (source, step, sink)} == {"STOPPED"}


async def test_two_workers_of_one_name(backend, topic):
    def worker():
        return Collect(NodeConfig(name="worker", subscribe_topic_name=topic, group_id=GROUP))

    async def keyed(data):
        return Outgoing(data, key=data.decode())

    async with backend.connect() as bus, asyncio.timeout(DEADLINE * 2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            workers = worker(), worker()
            async with running(bus, *workers):
                for i in range(100):
                    await bus.publish(topic, b"%d" % i, key=str(i))
                expected = 100 if bus.capabilities.load_balancing else 200
                while sum(len(each.items) for each in workers) < expected:
                    await asyncio.sleep(0.005)
        shared = [len(each.items) for each in workers]
        warned = [warning for warning in caught if warning.category is CapabilityWarning]
        if bus.capabilities.load_balancing:
            assert sum(shared) == 100
            assert min(shared) > 0
            assert not warned
        else:
            assert shared == [100, 100]
            assert len(warned) == 1


@pytest.mark.parametrize("action", ["stop", "continue"])
async def test_an_error_and_the_next_run(backend, topic, action):
    """Where a log is kept, an input that failed comes again; elsewhere it is gone."""

    class Fails(Collect):
        async def on_message(self, data):
            if data == b"2" and not self.items.count(b"failed"):
                self.items.append(b"failed")
                raise ZeroDivisionError
            await super().on_message(data)

    node = Fails(NodeConfig(name=topic.replace(".", "-"), subscribe_topic_name=topic, action_on_error=action))
    async with backend.connect() as bus, asyncio.timeout(DEADLINE * 2):
        if action == "stop":
            run = asyncio.create_task(node.run(bus))
            await asyncio.sleep(0)
            await node._node_run.ready.wait()
        for i in range(4):
            if action == "stop":
                await bus.publish(topic, b"%d" % i)
        if action == "stop":
            with pytest.raises(ZeroDivisionError):
                await run
            assert node.items == [b"0", b"1", b"failed"]
            async with running(bus, node):
                await bus.publish(topic, b"4")
                again = [b"2", b"3"] if bus.capabilities.persistence else []
                await node.until(4 + len(again))
                assert node.items == [b"0", b"1", b"failed", *again, b"4"]
            return
        async with running(bus, node):
            for i in range(4):
                await bus.publish(topic, b"%d" % i)
            await node.until(4)
        async with running(bus, node):
            await bus.publish(topic, b"4")
            await node.until(5)
        assert node.items == [b"0", b"1", b"failed", b"3", b"4"]


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_what_is_left_counts_each_input_once_before_and_after_a_cancelled_run(backend, topic, concurrency):
    """Handlers behind a slow one are done, and wait for it to publish."""

    async def hang_at_the_fifth(data):
        return await asyncio.Event().wait() if data == b"5" else data

    out = f"{topic}.out"
    node = Apply(
        NodeConfig(
            name=topic.replace(".", "-"),
            subscribe_topic_name=topic,
            publish_topic_name=out,
            concurrency=concurrency,
        ),
        hang_at_the_fifth,
    )
    async with backend.connect(MSIGHT_KAFKA_PARTITIONS="1") as bus, bus.subscribe(out) as outputs:
        task = await start(bus, node)
        async with bus.publisher(topic) as publisher:
            for number in range(1, 31):
                await publisher.send(b"%d" % number)
        await take(outputs, 4)
        async with asyncio.timeout(DEADLINE):
            while node.left != 26:
                await asyncio.sleep(0.01)
            for _ in range(50):  # it stays so while the other handlers go on
                await asyncio.sleep(0)
        assert node.left == 26
        task.cancel()
        await asyncio.wait((task,))
        assert node.left == 26
