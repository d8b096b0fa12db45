"""Processing nodes and sinks: what they are given, what becomes of their outputs and errors."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from msight_bus import BusyError, BytesData, ClosedError, Data, QueuePolicy, SensorData
from msight_bus.nodes import NodeConfig, Outgoing, SinkNode
from tests.support.nodes import DEADLINE, Apply, Collect, eventually, running, start
from tests.support.receiving import take


class Reading(SensorData, tag="tests.nodes.Reading"):
    value: int


def config(**fields):
    return NodeConfig(**{"name": "node", "subscribe_topic_name": "in", "publish_topic_name": "out", **fields})


@pytest.fixture
def sink():
    return Collect(NodeConfig(name="sink", subscribe_topic_name="out"))


async def publish_numbers(bus, count, topic="in"):
    for i in range(count):
        await bus.publish(topic, b"%d" % i)


async def test_none_one_and_many_outputs(memory, sink):
    async def repeat(data):
        n = int(data)
        return None if n == 0 else data if n == 1 else [data] * n

    async with memory.connect() as bus, running(bus, sink, Apply(config(), repeat)):
        await publish_numbers(bus, 4)
        assert await sink.until(6) == [b"1", b"2", b"2", b"3", b"3", b"3"]


async def test_outgoing_carries_key_and_headers(memory):
    async def keyed(data):
        return Outgoing(data, key="k", headers={"h": "v"})

    async with memory.connect() as bus, bus.subscribe("out") as messages, running(bus, Apply(config(), keyed)):
        await bus.publish("in", b"x")
        message = await anext(messages)
        assert (message.payload, message.key, message.headers) == (b"x", "k", {"h": "v"})


async def test_data_is_decoded_and_bytes_stay_bytes(memory):
    sink = Collect(NodeConfig(name="s", subscribe_topic_name="in"))
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", b"plain")
        await bus.publish("in", Reading(value=3))
        plain, reading = await sink.until(2)
    assert plain == b"plain"
    assert isinstance(reading, Reading)
    assert reading.value == 3


async def test_payloads_as_they_are(memory):
    sink = Collect(NodeConfig(name="s", subscribe_topic_name="in", subscribe_topic_data_type=bytes))
    reading = Reading(value=3)
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", reading)
        assert await sink.until(1) == [reading.serialize()]


@pytest.mark.parametrize("kind", [None, Reading])
async def test_what_cannot_be_decoded_is_counted_and_left_out(memory, caplog, kind):
    sink = Collect(NodeConfig(name="s", subscribe_topic_name="in", subscribe_topic_data_type=kind))
    damaged = Reading(value=3).serialize()[:-1]
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", damaged)
        await bus.publish("in", damaged)
        if kind is not None:
            await bus.publish("in", BytesData(data=b"another type"))
        await bus.publish("in", Reading(value=4))
        assert [item.value for item in await sink.until(1)] == [4]
        assert sink._node_run.meter.undecodable == (2 if kind is None else 3)
        assert sink.status == "RUNNING"
    first, *last = [line for line in caplog.messages if "cannot be decoded" in line]
    assert len(last) <= 1, "at the first, and at the end if there were more"
    assert "so far" not in first


async def test_what_fails_or_cannot_be_decoded_is_on_the_dead_letter_topic(memory):
    node = Apply(config(action_on_error="continue", dead_letter_topic_name="in.dead"), divide)
    damaged = Reading(value=3).serialize()[:-1]
    async with memory.connect() as bus, bus.subscribe("in.dead") as dead, running(bus, node):
        await bus.publish("in", b"0", key="lane 3", headers={"lens": "wide"})
        await bus.publish("in", damaged)
        first, second = await take(dead, 2)
        assert node._node_run.meter.errors == 1
    assert (first.payload, first.key) == (b"0", "lane 3")
    assert first.headers == {"lens": "wide", "msight-dead-topic": "in", "msight-dead-error": "ZeroDivisionError"}
    assert (second.payload, second.headers["msight-dead-error"]) == (damaged, "DecodeError")


async def test_a_base_class_takes_its_subclasses(memory):
    sink = Collect(NodeConfig(name="s", subscribe_topic_name="in", subscribe_topic_data_type=Data))
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", Reading(value=3))
        assert [item.value for item in await sink.until(1)] == [3]


async def test_gap_leaves_out_what_comes_between(memory):
    sink = Collect(NodeConfig(name="s", subscribe_topic_name="in", gap=1))
    async with memory.connect() as bus, running(bus, sink):
        await publish_numbers(bus, 5)
        assert await sink.until(3) == [b"0", b"2", b"4"]
        assert sink._node_run.meter.messages_in == 5


async def divide(data):
    return b"%d" % (10 // int(data))


async def test_stop_ends_the_node_with_its_own_error(memory, caplog):
    node = Apply(config(), divide)
    async with memory.connect() as bus:
        task = await start(bus, node)
        await bus.publish("in", b"0")
        await bus.publish("in", b"1")
        with pytest.raises(ZeroDivisionError):
            await task
        assert node.status == "ERROR"
        assert node._node_run.meter.messages_in == 1
    failed = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[0] for record in failed] == [ZeroDivisionError]
    assert failed[0].name == "msight_bus.nodes.node"


async def test_continue_counts_an_error_and_goes_on(memory, sink, caplog):
    node = Apply(config(action_on_error="continue"), divide)
    async with memory.connect() as bus, running(bus, sink, node):
        await bus.publish("in", b"0")
        await bus.publish("in", b"nonsense")
        await bus.publish("in", b"5")
        assert await sink.until(1) == [b"2"]
        assert node._node_run.meter.errors == 2
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError, ValueError]


@pytest.mark.parametrize("action", ["stop", "continue"])
async def test_an_output_that_cannot_be_published_is_an_error_of_the_node(memory, sink, action):
    async def too_large(data):
        return data * 2000

    node = Apply(config(action_on_error=action), too_large)
    async with memory.connect(MSIGHT_MAX_MESSAGE_BYTES="2000") as bus:
        task = await start(bus, node)
        await bus.publish("in", b"xx")
        if action == "stop":
            with pytest.raises(ValueError, match="2000"):
                await task
            return
        async with running(bus, sink):
            await bus.publish("in", b"x")
            assert await sink.until(1) == [b"x" * 2000]
        assert node._node_run.meter.errors == 1
        node.stop()
        await task


async def test_a_cancellation_that_nobody_asked_for_is_an_error(memory):
    async def odd(data):
        raise asyncio.CancelledError

    async with memory.connect() as bus:
        task = await start(bus, Apply(config(), odd))
        await bus.publish("in", b"")
        with pytest.raises(RuntimeError, match="CancelledError"):
            await task


async def test_a_handler_that_exits_is_an_error_and_the_next_input_is_handled(memory, sink):
    """(celery 10667) `sys.exit` would end the loop at once, with every other node."""

    async def odd(data):
        return data if data == b"1" else sys.exit(3)

    node = Apply(config(action_on_error="continue"), odd)
    async with memory.connect() as bus, running(bus, sink, node):
        await bus.publish("in", b"0")
        await bus.publish("in", b"1")
        assert await sink.until(1) == [b"1"]
        assert node._node_run.meter.errors == 1


class TextlessError(Exception):
    """Has no text."""

    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("action", ["stop", "continue"])
async def test_an_error_whose_str_fails_is_handled_like_any_other(memory, sink, action, caplog):
    """(celery 6990, 8132) What an exception's own code does when it is looked at ends no worker."""

    async def odd(data):
        if data == b"0":
            raise TextlessError
        return data

    node = Apply(config(action_on_error=action), odd)
    async with memory.connect() as bus, running(bus, sink):
        task = await start(bus, node)
        await bus.publish("in", b"0")
        await bus.publish("in", b"1")
        if action == "stop":
            with pytest.raises(TextlessError):
                await task
        else:
            assert await sink.until(1) == [b"1"]
            node.stop()
            await task
    assert "TextlessError" in caplog.text


async def test_at_most_concurrency_handlers_at_a_time(memory, sink):
    most = now = 0
    all_in = asyncio.Event()

    async def handle(data):
        nonlocal most, now
        now += 1
        most = max(most, now)
        if now == 3:
            all_in.set()
        await all_in.wait()
        await asyncio.sleep(0)
        now -= 1
        return data

    async with memory.connect() as bus, running(bus, sink, Apply(config(concurrency=3), handle)):
        await publish_numbers(bus, 12)
        await sink.until(12)
    assert most == 3


async def test_outputs_keep_the_order_of_their_inputs(memory, sink):
    go_on = asyncio.Event()

    async def handle(data):
        number = int(data)
        if number == 0:
            await go_on.wait()
        if number == 7:
            go_on.set()
        if number % 4 == 1:
            return None
        if number % 4 == 3:
            raise ZeroDivisionError
        return data

    # One that fails or has no output must not open the way past an earlier one that is not done.
    node = Apply(config(concurrency=8, action_on_error="continue"), handle)
    async with memory.connect() as bus, running(bus, sink, node):
        await publish_numbers(bus, 8)
        assert await sink.until(4) == [b"0", b"2", b"4", b"6"]


async def test_a_slow_input_holds_back_a_bounded_number_of_later_ones(memory, sink):
    go_on = asyncio.Event()

    async def handle(data):
        if data == b"0":
            await go_on.wait()
        return data

    node = Apply(config(concurrency=2), handle)
    async with memory.connect() as bus, running(bus, sink, node):
        await publish_numbers(bus, 20)
        for _ in range(100):
            await asyncio.sleep(0)
        assert node.metrics().messages_in == 4
        assert node.left == 20
        go_on.set()
        assert await sink.until(20) == [b"%d" % i for i in range(20)]


async def test_an_input_that_is_left_out_lets_the_later_ones_pass(memory, sink):
    """Undecodable, failed, cancelled: each has a place before the last input."""

    async def handle(data):
        if data == b"fails":
            raise ZeroDivisionError
        if data == b"is cancelled":
            raise asyncio.CancelledError
        return data

    damaged = Reading(value=3).serialize()[:-1]
    async with (
        memory.connect() as bus,
        running(bus, sink, Apply(config(concurrency=8, action_on_error="continue"), handle)),
    ):
        for payload in (damaged, b"fails", b"is cancelled", b"fine"):
            await bus.publish("in", payload)
        assert await sink.until(1) == [b"fine"]


async def test_the_first_of_two_failures_is_raised(memory):
    first = asyncio.Event()

    async def handle(data):
        if data == b"1":
            first.set()
            raise ZeroDivisionError
        await first.wait()
        raise ValueError

    async with memory.connect() as bus:
        task = await start(bus, Apply(config(concurrency=2), handle))
        await publish_numbers(bus, 2)
        with pytest.raises(ZeroDivisionError):
            await task


async def test_an_input_that_comes_with_the_failure_is_not_handled(memory):
    handled = []

    async def handle(data):
        handled.append(data)
        await bus.publish("in", b"late")  # the other handler is waiting for it
        raise ZeroDivisionError

    async with memory.connect() as bus:
        task = await start(bus, Apply(config(concurrency=2), handle))
        await bus.publish("in", b"first")
        with pytest.raises(ZeroDivisionError):
            await task
    assert handled == [b"first"]


async def test_a_failure_lets_the_other_handlers_finish(memory, sink):
    second_in_hand = asyncio.Event()
    failed = asyncio.Event()

    async def handle(data):
        if data == b"0":
            await second_in_hand.wait()
            failed.set()
            raise ZeroDivisionError
        second_in_hand.set()
        await failed.wait()
        await asyncio.sleep(0)
        return data

    node = Apply(config(concurrency=2), handle)
    async with memory.connect() as bus, running(bus, sink):
        task = await start(bus, node)
        await publish_numbers(bus, 5)
        with pytest.raises(ZeroDivisionError):
            await task
        assert await sink.until(1) == [b"1"]
        assert node._node_run.meter.messages_in == 2


async def test_handlers_that_never_wait_leave_the_loop_to_others(memory):
    go_on = asyncio.Event()

    class Busy(SinkNode):
        handled = 0

        async def on_message(self, data):
            await go_on.wait()
            self.handled += 1
            time.sleep(0.006)

    node = Busy(config(publish_topic_name=None))
    async with memory.connect() as bus, running(bus, node):
        await publish_numbers(bus, 30)
        go_on.set()
        turns = 0
        while node.handled < 30:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 15


async def test_a_slow_node_drops_by_its_queue(memory, sink):
    first = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(data):
        first.set()
        await go_on.wait()
        return data

    node = Apply(config(queue=QueuePolicy.latest(1)), slow)
    async with memory.connect() as bus, running(bus, sink, node):
        await bus.publish("in", b"first")
        await first.wait()
        await publish_numbers(bus, 4)
        go_on.set()
        assert await sink.until(2) == [b"first", b"3"]
        assert node.metrics().dropped == 3


async def test_a_group_shares_its_input_and_no_group_is_made_up(memory):
    workers = [Collect(NodeConfig(name="worker", subscribe_topic_name="in", group_id="workers")) for _ in range(2)]
    viewers = [Collect(NodeConfig(name="viewer", subscribe_topic_name="in")) for _ in range(2)]
    async with memory.connect() as bus, running(bus, *workers, *viewers):
        await publish_numbers(bus, 10)
        for viewer in viewers:
            await viewer.until(10)
        assert [len(worker.items) for worker in workers] == [5, 5]


async def test_a_stop_handles_the_queued_inputs(memory, sink):
    first = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(data):
        first.set()
        await go_on.wait()
        return data

    node = Apply(config(), slow)
    async with memory.connect() as bus, running(bus, sink):
        task = await start(bus, node)
        await publish_numbers(bus, 5)
        await first.wait()
        assert node.left == 5
        node.stop()
        go_on.set()
        await task
        assert await sink.until(5) == [b"0", b"1", b"2", b"3", b"4"]
        assert node.left == 0
        assert node.status == "STOPPED"


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_draining_the_bus_waits_for_the_nodes(memory, concurrency):
    """A handler that still works when the input has ended must be able to publish."""
    go_on = asyncio.Event()
    first = asyncio.Event()

    async def slow(data):
        first.set()
        await go_on.wait()
        return data

    node = Apply(config(concurrency=concurrency), slow)
    async with memory.connect() as other, other.subscribe("out") as messages:
        async with memory.connect() as bus:
            task = await start(bus, node)
            await publish_numbers(other, 3)
            await first.wait()
            draining = asyncio.create_task(bus.drain(DEADLINE))
            await asyncio.sleep(0)
            go_on.set()
            await draining
            assert task.done()
            assert node.status == "STOPPED"
        assert [(await anext(messages)).payload for _ in range(3)] == [b"0", b"1", b"2"]
        await task


async def test_draining_the_bus_from_inside_a_handler_ends_the_node(memory, sink):
    class Last(SinkNode):
        async def on_message(self, data):
            await self.bus.drain(DEADLINE)

    node = Last(config(publish_topic_name=None, concurrency=3))
    async with memory.connect() as bus:
        task = await start(bus, node)
        await bus.publish("in", b"")
        async with asyncio.timeout(DEADLINE):
            await task


async def test_closing_the_bus_ends_the_node_with_an_error(memory):
    async with memory.connect() as bus:
        task = await start(bus, Apply(config(), divide))
    with pytest.raises(ClosedError):
        await task


async def test_hooks_in_their_order(memory, caplog):
    calls = []

    class Hooked(SinkNode):
        async def on_start(self):
            calls.append(("start", self.status))

        async def on_message(self, data):
            calls.append(("message", self.status))
            raise ZeroDivisionError

        async def on_stop(self):
            calls.append(("stop", self.status))
            raise OSError("the disk is full")

    async with memory.connect() as bus:
        task = await start(bus, Hooked(config(publish_topic_name=None)))
        await bus.publish("in", b"")
        with pytest.raises(ZeroDivisionError):
            await task
    assert calls == [("start", "REGISTERED"), ("message", "RUNNING"), ("stop", "RUNNING")]
    assert "the disk is full" in caplog.text


async def test_an_error_in_on_start_ends_the_node_and_neither_on_message_nor_on_stop_is_called(memory):
    calls = []

    class Broken(SinkNode):
        async def on_start(self):
            calls.append("start")
            await self.bus.publish("in", b"")
            raise OSError("no model")

        async def on_message(self, data):
            calls.append("message")

        async def on_stop(self):
            calls.append("stop")

    async with memory.connect() as bus:
        with pytest.raises(OSError, match="no model"):
            await Broken(config(publish_topic_name=None)).run(bus)
    assert calls == ["start"]


async def test_a_node_runs_once_at_a_time_and_again_afterwards(memory, sink):
    async with memory.connect() as bus:
        async with running(bus, sink):
            with pytest.raises(BusyError):
                await sink.run(bus)
            assert sink.bus is bus
        with pytest.raises(ClosedError):
            _ = sink.bus
        async with running(bus, sink):
            await bus.publish("out", b"again")
            assert await sink.until(1) == [b"again"]


async def test_attributes_of_a_subclass_do_not_get_in_the_way(memory):
    class Mine(SinkNode):
        def __init__(self, config):
            super().__init__(config)
            self._items = self._meter = self._bus = self._status = self._queue = self._task = "mine"
            self.came = asyncio.Event()

        async def on_message(self, data):
            self.came.set()

        def _send(self):
            raise AssertionError

        _decode = _handle = _take = _run = _next = _close = _fail = _send

    node = Mine(config(publish_topic_name=None))
    async with memory.connect() as bus, running(bus, node):
        await bus.publish("in", b"")
        await eventually(node.came, node.came.is_set)


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_handler_that_leaves_its_task_cancelled_ends_the_node(memory, concurrency):
    count = 0

    async def handle(data):
        nonlocal count
        count += 1
        if count == 5:
            asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return data

    async with memory.connect() as bus:
        task = await start(bus, Apply(config(concurrency=concurrency), handle))
        for number in range(50):
            await bus.publish("in", b"%d" % number)
        with pytest.raises(RuntimeError, match="cancelled the task in which it runs"):
            await task


async def test_an_input_older_than_its_lifespan_is_not_handled(msight_simulation):
    class Slow(Collect):
        async def on_message(self, data):
            await super().on_message(data)
            await asyncio.sleep(5)

    node = Slow(NodeConfig(name="slow", subscribe_topic_name="in", lifespan=3))
    async with msight_simulation.connect() as bus, running(bus, node):
        await publish_numbers(bus, 2)
        await asyncio.sleep(4)
        await bus.publish("in", b"fresh")
        await asyncio.sleep(4)
        assert node.items == [b"0", b"fresh"]
        assert node.metrics().dropped == 1
