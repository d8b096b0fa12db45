"""Sources: how they are asked, how they end, what they do about errors."""

from __future__ import annotations

import asyncio
import logging
import sys
from itertools import pairwise

import pytest

from msight_bus import BytesData
from msight_bus.nodes import NodeConfig, Outgoing, SourceNode
from tests.support.nodes import DEADLINE, Collect, Numbers, running, start
from tests.support.receiving import take


def config(**fields):
    return NodeConfig(**{"name": "source", "publish_topic_name": "out", **fields})


@pytest.fixture
def sink():
    return Collect(NodeConfig(name="sink", subscribe_topic_name="out"))


async def test_get_data_until_there_is_nothing_more(memory, sink):
    async with memory.connect() as bus, running(bus, sink):
        await Numbers(config(), count=3).run(bus)
        assert await sink.until(3) == [b"0", b"1", b"2"]


async def test_a_stream_ends_the_node(memory, sink):
    class Stream(SourceNode):
        async def stream(self):
            yield b"a"
            yield None
            yield [b"b", BytesData(data=b"c")]
            yield Outgoing(b"d", key="k", headers={"h": "v"})

    async with memory.connect() as bus, bus.subscribe("out") as messages, running(bus, sink):
        await Stream(config()).run(bus)
        items = await sink.until(4)
        assert [item if isinstance(item, bytes) else item.data for item in items] == [b"a", b"b", b"c", b"d"]
        last = [await anext(messages) for _ in range(4)][-1]
        assert (last.key, last.headers) == ("k", {"h": "v"})


async def test_gap_leaves_out_what_comes_between(memory, sink):
    async with memory.connect() as bus, running(bus, sink):
        await Numbers(config(gap=2), count=8).run(bus)
        assert await sink.until(3) == [b"0", b"3", b"6"]


async def test_a_stop_ends_the_waiting_for_data_and_closes_the_stream(memory):
    waiting = asyncio.Event()
    closed = asyncio.Event()

    class Silent(SourceNode):
        async def stream(self):
            try:
                waiting.set()
                await asyncio.Event().wait()
                yield b""
            finally:
                closed.set()

    async with memory.connect() as bus, running(bus, Silent(config())):
        await waiting.wait()
    assert closed.is_set()


async def test_a_source_that_never_waits_leaves_the_loop_to_others(memory):
    class Nothing(SourceNode):
        asked = 0

        async def get_data(self):
            self.asked += 1

    source = Nothing(config())
    async with memory.connect() as bus, running(bus, source):
        for _ in range(10):
            await asyncio.sleep(0)
        asked = source.asked
    assert asked > 20  # several items an iteration


async def test_an_error_stops_the_source_with_its_traceback_in_the_log(memory, caplog):
    class Broken(SourceNode):
        async def get_data(self):
            raise ZeroDivisionError("the camera is on fire")

    source = Broken(config())
    async with memory.connect() as bus:
        with pytest.raises(ZeroDivisionError, match="on fire"):
            await source.run(bus)
    assert source.status == "ERROR"
    assert any(record.exc_info and record.name == "msight_bus.nodes.source" for record in caplog.records)


async def test_continue_asks_again_after_an_error(memory, sink, caplog):
    class Flaky(SourceNode):
        streams = 0

        async def stream(self):
            self.streams += 1
            yield b"%d" % self.streams
            if self.streams == 1:
                raise OSError("unplugged")

    source = Flaky(config(action_on_error="continue"))
    async with memory.connect() as bus, running(bus, sink):
        await source.run(bus)
        assert await sink.until(2) == [b"1", b"2"]
        assert source._node_run.meter.errors == 1
    assert "unplugged" in caplog.text


async def test_a_source_that_exits_has_failed(memory, caplog):
    class Exits(SourceNode):
        async def stream(self):
            yield b"0"
            sys.exit(3)

    async with memory.connect() as bus:
        with pytest.raises(RuntimeError, match=r"SystemExit\(3\)"):
            await Exits(config()).run(bus)


async def test_what_cannot_be_published_is_an_error_of_the_source(memory):
    class Wrong(SourceNode):
        async def get_data(self):
            return 42

    async with memory.connect() as bus:
        with pytest.raises(TypeError, match="not int"):
            await Wrong(config()).run(bus)


async def test_the_declared_data_type_is_checked(memory):
    async with memory.connect() as bus:
        with pytest.raises(TypeError, match=r"must be BytesData.*not bytes"):
            await Numbers(config(publish_topic_data_type=BytesData), count=1).run(bus)


async def test_a_timeout_in_the_sources_own_code_is_its_error(memory):
    class Slow(SourceNode):
        async def get_data(self):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    async with memory.connect() as bus:
        with pytest.raises(TimeoutError):
            await Slow(config()).run(bus)


async def test_a_cancellation_that_nobody_asked_for_is_an_error(memory):
    class Odd(SourceNode):
        async def get_data(self):
            raise asyncio.CancelledError

    async with memory.connect() as bus:
        with pytest.raises(RuntimeError, match="CancelledError"):
            await Odd(config()).run(bus)


async def test_cancelling_run_ends_it_as_cancelled(memory):
    started = asyncio.Event()

    class Silent(SourceNode):
        stopped = False

        async def get_data(self):
            started.set()
            await asyncio.Event().wait()

        async def on_stop(self):
            self.stopped = True

    source = Silent(config())
    async with memory.connect() as bus:
        task = asyncio.create_task(source.run(bus))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert source.stopped


async def test_draining_the_bus_ends_a_source(memory, sink):
    source = Numbers(config())
    async with memory.connect() as other, running(other, sink):
        async with memory.connect() as bus:
            task = await start(bus, source)
            await sink.until(3)
            await bus.drain(DEADLINE)
            await task
            assert source.status == "STOPPED"
        await sink.until(source.given)


async def test_the_level_of_the_nodes_logger(memory):
    async with memory.connect() as bus:
        source = Numbers(config(logging_level="error"), count=0)
        await source.run(bus)
        assert source.logger.level == logging.ERROR
    async with memory.connect(MSIGHT_LOGGING_LEVEL="DEBUG") as bus:
        source = Numbers(config(), count=0)
        await source.run(bus)
        assert source.logger.level == logging.DEBUG


async def test_an_output_that_cannot_be_published_does_not_begin_the_source_anew(memory):
    class Mine(SourceNode):
        async def stream(self):
            for number in range(6):
                yield [b"%d" % number, bytes(3000)] if number == 2 else b"%d" % number if number != 4 else "text"

    async with memory.connect(MSIGHT_MAX_MESSAGE_BYTES="2000") as bus, bus.subscribe("out") as messages:
        node = Mine(NodeConfig(name="mine", publish_topic_name="out", action_on_error="continue"))
        await node.run(bus)
        assert [message.payload for message in await take(messages, 5)] == [b"0", b"1", b"2", b"3", b"5"]
        assert (node.metrics().errors, node.metrics().messages_out) == (2, 5)


async def test_a_source_that_goes_on_failing_is_asked_less_and_less_often(msight_simulation):
    loop = asyncio.get_running_loop()
    asked = []

    class Broken(SourceNode):
        async def get_data(self):
            asked.append(loop.time())
            if len(asked) != 11:
                raise OSError("unplugged")

    source = Broken(config(action_on_error="continue"))
    async with msight_simulation.connect() as bus:
        task = await start(bus, source)
        await asyncio.sleep(60)
        stopped_at = loop.time()
        source.stop()  # in a pause of 10 s
        await task
        assert loop.time() - stopped_at < 1
    pauses = [round(after - before, 1) for before, after in pairwise(asked)]
    assert pauses[:11] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 0]
    assert pauses[11:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]


async def test_a_source_that_waits_for_its_sensor_for_a_minute_is_announced(msight_simulation):
    class Silent(SourceNode):
        async def get_data(self):
            await asyncio.Event().wait()

    source = Silent(config())
    async with msight_simulation.connect() as bus, running(bus, source):
        await asyncio.sleep(59)
        assert source.status == "RUNNING"
        await asyncio.sleep(30)
        assert source.status == "ERROR"


async def test_a_stop_takes_no_item_from_a_source_that_publishes_it(msight_simulation):
    source = Numbers(config(), count=5)
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="out"))
    async with msight_simulation.connect() as other, running(other, sink):
        async with msight_simulation.connect() as bus:
            msight_simulation.disconnect(bus)
            task = await start(bus, source)
            await asyncio.sleep(1)
            source.stop()
            await asyncio.sleep(1)
            msight_simulation.reconnect(bus)
            await task
        assert await sink.until(1) == [b"0"]
