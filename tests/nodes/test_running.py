"""Several nodes in one process: their start, their end, and what happens when one fails."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from msight_bus import BusSettings, ConfigError, DrainTimeoutError
from msight_bus.nodes import NodeConfig, run_nodes, run_until
from msight_bus.signals import restorers
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers

MEMORY = BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "memory"})


async def echo(data):
    return data


def pipeline(count=None, function=echo):
    """A source, two steps and a sink, in an order that is not that of the data."""
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="c"))
    source = Numbers(NodeConfig(name="source", publish_topic_name="a"), count)
    first = Apply(NodeConfig(name="first", subscribe_topic_name="a", publish_topic_name="b"), function)
    second = Apply(NodeConfig(name="second", subscribe_topic_name="b", publish_topic_name="c"), echo)
    return source, second, sink, first


def test_a_finite_source_ends_a_pipeline_and_nothing_is_lost():
    nodes = pipeline(count=50)
    run_nodes(*nodes, settings=MEMORY, end_with_sources=True)
    assert nodes[2].items == [b"%d" % i for i in range(50)]


def test_without_that_the_others_wait_for_more(memory):
    async def main():
        nodes = pipeline(count=5)
        stop = asyncio.Event()
        async with memory.connect() as bus:
            task = asyncio.create_task(run_until(bus, *nodes, stop=stop))
            async with asyncio.timeout(DEADLINE):
                while len(nodes[2].items) < 5:
                    await asyncio.sleep(0)
                while nodes[0].status != "STOPPED":
                    await asyncio.sleep(0)
            assert not task.done()
            stop.set()
            await task

    asyncio.run(main())


async def test_a_stop_drains_in_the_order_of_the_pipeline(memory):
    nodes = pipeline()
    stop = asyncio.Event()
    async with memory.connect() as bus:
        task = asyncio.create_task(run_until(bus, *nodes, stop=stop))
        await nodes[2].until(20)
        stop.set()
        await task
    assert nodes[2].items == [b"%d" % i for i in range(nodes[0].given)]


async def test_nodes_in_a_circle_are_drained_too(memory):
    stop = asyncio.Event()
    a = Apply(NodeConfig(name="a", subscribe_topic_name="x", publish_topic_name="y"), echo)
    b = Apply(NodeConfig(name="b", subscribe_topic_name="y", publish_topic_name="x"), echo)
    async with memory.connect() as bus:
        task = asyncio.create_task(run_until(bus, a, b, stop=stop))
        while b.status != "RUNNING":
            await asyncio.sleep(0)
        await bus.publish("x", b"round and round")
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await task


async def test_the_others_go_on_when_one_fails_and_its_error_comes_at_the_end(memory):
    async def divide(data):
        return 1 // int(data)

    source = Numbers(NodeConfig(name="source", publish_topic_name="a"))
    broken = Apply(NodeConfig(name="broken", subscribe_topic_name="a", publish_topic_name="b"), divide)
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="a"))
    stop = asyncio.Event()
    async with memory.connect() as bus:
        task = asyncio.create_task(run_until(bus, source, broken, sink, stop=stop))
        await sink.until(1)
        while broken.status != "ERROR":
            await asyncio.sleep(0)
        await sink.until(len(sink.items) + 10)
        assert not task.done()
        stop.set()
        with pytest.raises(ZeroDivisionError):
            await task
    assert sink.items == [b"%d" % i for i in range(source.given)]


async def test_it_ends_when_all_have_failed(memory):
    class Broken(Collect):
        async def on_start(self):
            raise OSError(self.name)

    nodes = [Broken(NodeConfig(name=name, subscribe_topic_name="a")) for name in ("first", "second")]
    async with memory.connect() as bus:
        with pytest.raises(OSError, match="first"):
            await run_until(bus, *nodes, stop=asyncio.Event())


async def test_a_deadline_for_the_drain(memory):
    in_hand = asyncio.Event()

    async def hang(data):
        in_hand.set()
        await asyncio.Event().wait()

    source, second, sink, first = pipeline(count=4, function=hang)
    stop = asyncio.Event()
    async with memory.connect(MSIGHT_DRAIN_TIMEOUT="0.1") as bus:
        task = asyncio.create_task(run_until(bus, source, second, sink, first, stop=stop))
        await in_hand.wait()
        while source.status != "STOPPED":
            await asyncio.sleep(0)
        stop.set()
        with pytest.raises(DrainTimeoutError, match="4 messages at node first") as caught:
            await task
    assert caught.value.left == {"node first": 4}


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
async def test_a_hook_that_hangs_is_named_at_the_deadline(memory, hook):
    """(FastStream 965) What hangs is not a message."""
    hanging = asyncio.Event()

    async def hang(self):
        hanging.set()
        await asyncio.Event().wait()

    node = type("Mine", (Collect,), {hook: hang})(NodeConfig(name="mine", subscribe_topic_name="a"))
    stop = asyncio.Event()
    async with memory.connect(MSIGHT_DRAIN_TIMEOUT="0.1") as bus:
        task = asyncio.create_task(run_until(bus, node, stop=stop))
        if hook == "on_start":
            await hanging.wait()
        stop.set()
        with pytest.raises(DrainTimeoutError, match=rf"node mine \(in {hook}\)"):
            await task


async def test_a_stop_while_a_node_is_starting(memory):
    class Slow(Collect):
        async def on_start(self):
            starting.set()
            await go_on.wait()

    starting = asyncio.Event()
    go_on = asyncio.Event()
    stop = asyncio.Event()
    source = Numbers(NodeConfig(name="source", publish_topic_name="a"))
    async with memory.connect() as bus:
        slow = Slow(NodeConfig(name="slow", subscribe_topic_name="a"))
        task = asyncio.create_task(run_until(bus, source, slow, stop=stop))
        await starting.wait()
        stop.set()
        await asyncio.sleep(0)
        go_on.set()
        async with asyncio.timeout(DEADLINE):
            await task
    assert source.given == 0


async def test_cancelling_it_ends_the_nodes(memory):
    nodes = pipeline()
    async with memory.connect() as bus:
        task = asyncio.create_task(run_until(bus, *nodes, stop=asyncio.Event()))
        await nodes[2].until(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert {node.status for node in nodes} == {"STOPPED"}


def test_what_cannot_be_run():
    source, *_ = pipeline()
    with pytest.raises(ConfigError, match="at least one"):
        run_nodes()
    with pytest.raises(ConfigError, match="given twice"):
        run_nodes(source, source)
    with pytest.raises(ConfigError, match="instance of a Node"):
        run_nodes(Numbers)


def test_it_runs_in_another_thread_than_the_main_one():
    nodes = pipeline(count=3)
    failed = []

    def work():
        try:
            run_nodes(*nodes, settings=MEMORY, end_with_sources=True)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE)
    assert not failed
    assert len(nodes[2].items) == 3


async def test_a_deadline_is_told_although_the_error_of_a_node_is_raised(memory, caplog):
    class Broken(Collect):
        async def on_start(self):
            raise OSError("no model")

    class Hangs(Collect):
        async def on_message(self, data):
            await asyncio.Event().wait()

    stop = asyncio.Event()
    broken = Broken(NodeConfig(name="broken", subscribe_topic_name="a"))
    hangs = Hangs(NodeConfig(name="hangs", subscribe_topic_name="a"))
    async with memory.connect(MSIGHT_DRAIN_TIMEOUT="0.1") as bus:
        task = asyncio.create_task(run_until(bus, broken, hangs, stop=stop))
        while hangs.status != "RUNNING":
            await asyncio.sleep(0)
        await bus.publish("a", b"")
        while not hangs.metrics().messages_in:
            await asyncio.sleep(0)
        stop.set()
        with pytest.raises(OSError, match="no model"):
            await task
    assert "1 message at node hangs" in caplog.text


def test_the_former_signal_handlers_are_back_after_a_run():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        run_nodes(*pipeline(count=1), settings=MEMORY, end_with_sources=True)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not restorers  # of a child that is forked later
