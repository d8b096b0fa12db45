"""Situations from bug reports of frameworks with handlers; `tests/REPORTS.md` names the reports."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import subprocess
import sys

import pytest

from msight_bus import DrainTimeoutError
from msight_bus.nodes import NodeConfig, ProcessingNode, SinkNode, SourceNode, run_until
from tests.support.nodes import Apply, Collect, Numbers, running, start
from tests.support.programs import environment, program, ready
from tests.support.receiving import take


class PanicError(BaseException):
    """As a panic of a Rust extension: no `Exception`."""


def config(**fields):
    return NodeConfig(**{"name": "node", "subscribe_topic_name": "in", "publish_topic_name": "out", **fields})


@pytest.fixture
def sink():
    return Collect(NodeConfig(name="sink", subscribe_topic_name="out"))


# -- exceptions that are no Exception


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_panic_in_a_handler_is_an_error_and_the_next_input_is_handled(memory, sink, caplog, concurrency):
    async def step(data):
        if data == b"0":
            raise PanicError("index out of bounds")
        return data

    node = Apply(config(action_on_error="continue", dead_letter_topic_name="in.dead", concurrency=concurrency), step)
    async with memory.connect() as bus, bus.subscribe("in.dead") as dead, running(bus, sink, node):
        await bus.publish("in", b"0")
        await bus.publish("in", b"1")
        assert await sink.until(1) == [b"1"]
        assert [message.payload for message in await take(dead, 1)] == [b"0"]
        assert node.metrics().errors == 1
    assert "PanicError: index out of bounds" in caplog.text


async def test_a_panic_in_a_handler_ends_its_node_with_an_error(memory):
    async def step(data):
        raise PanicError

    node = Apply(config(), step)
    async with memory.connect() as bus:
        task = await start(bus, node)
        await bus.publish("in", b"0")
        with pytest.raises(RuntimeError, match="PanicError"):
            await task
    assert (node.status, node.metrics().errors) == ("ERROR", 1)


@pytest.mark.parametrize("where", ["stream", "finally"])
async def test_a_source_that_panics_is_called_again(memory, sink, where):
    class Mine(SourceNode):
        calls = 0

        async def stream(self):
            self.calls += 1
            try:
                yield b"%d" % self.calls
                if self.calls == 1:
                    raise PanicError if where == "stream" else OSError
            finally:
                if where == "finally" and self.calls == 1:
                    raise PanicError

    node = Mine(NodeConfig(name="mine", publish_topic_name="out", action_on_error="continue"))
    async with memory.connect() as bus, running(bus, sink):
        await node.run(bus)
        assert await sink.until(2) == [b"1", b"2"]
    assert node.metrics().errors == 1


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
async def test_a_hook_that_panics_is_an_error(memory, hook):
    async def panic(self):
        raise PanicError

    node = type("Mine", (Numbers,), {hook: panic})(NodeConfig(name="mine", publish_topic_name="out"), count=1)
    async with memory.connect() as bus:
        with pytest.raises(RuntimeError, match="PanicError"):
            await node.run(bus)
    assert (node.status, node.metrics().errors) == ("ERROR", 1)


@pytest.mark.parametrize("raised", [PanicError, SystemExit])
async def test_on_event_is_called_again_after_a_panic(msight_simulation, raised):
    events = []

    def on_event(event):
        events.append(event)
        raise raised

    async with msight_simulation.connect(on_event=on_event) as bus:
        for number in (2, 4):
            msight_simulation.disconnect(bus)
            await asyncio.sleep(1)
            msight_simulation.reconnect(bus)
            await asyncio.sleep(60)
            assert len(events) == number


# -- outputs


async def test_an_output_that_cannot_be_published_loses_no_other_output_of_its_input(memory, sink):
    async def three(data):
        return [b"before", bytes(3000), b"after"]

    node = Apply(config(action_on_error="continue", dead_letter_topic_name="in.dead"), three)
    async with (
        memory.connect(MSIGHT_MAX_MESSAGE_BYTES="2000") as bus,
        bus.subscribe("in.dead") as dead,
        running(bus, sink, node),
    ):
        await bus.publish("in", b"x")
        assert await sink.until(2) == [b"before", b"after"]
        assert [message.payload for message in await take(dead, 1)] == [b"x"]
        assert (node.metrics().errors, node.metrics().messages_out) == (1, 2)


async def test_a_node_that_ends_at_an_output_publishes_none_after_it(memory, sink):
    """On a log, the input is redelivered, and its outputs are published then."""

    async def three(data):
        return [b"before", bytes(3000), b"after"]

    node = Apply(config(), three)
    async with memory.connect(MSIGHT_MAX_MESSAGE_BYTES="2000") as bus, running(bus, sink):
        task = await start(bus, node)
        await bus.publish("in", b"x")
        with pytest.raises(ValueError, match="2000"):
            await task
        await bus.publish("out", b"end")
        assert await sink.until(2) == [b"before", b"end"]


async def test_an_output_that_ends_its_source_is_an_error_and_not_left(memory):
    class Mine(SourceNode):
        async def stream(self):
            yield bytes(3000)

    node = Mine(NodeConfig(name="mine", publish_topic_name="out"))
    async with memory.connect(MSIGHT_MAX_MESSAGE_BYTES="2000") as bus:
        with pytest.raises(ValueError, match="2000"):
            await node.run(bus)
    assert (node.metrics().errors, node.metrics().messages_out, node.left) == (1, 0, 0)


@pytest.mark.parametrize("kind", ["source", "step"])
async def test_a_long_list_of_outputs_leaves_the_loop_to_others(memory, kind):
    many = [b"%d" % number for number in range(5_000)]
    turns = set()

    async def step(data):
        return many

    class Once(SourceNode):
        async def stream(self):
            yield many if kind == "source" else b"go"

    nodes = [Once(NodeConfig(name="source", publish_topic_name="out" if kind == "source" else "in"))]
    if kind == "step":
        nodes.append(Apply(config(), step))
    async with memory.connect(MSIGHT_DRAIN_TIMEOUT="60") as bus:
        task = asyncio.create_task(run_until(bus, *nodes, stop=asyncio.Event(), end_with_sources=True))
        while not task.done():
            turns.add(nodes[-1].metrics().messages_out)
            await asyncio.sleep(0)
        await task
    assert len(turns - {0, len(many)}) > 10


# -- stopping


async def test_a_node_can_be_stopped_from_another_thread(memory):
    asyncio.get_running_loop().set_debug(True)  # refuses calls from other threads
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="in"))
    async with memory.connect() as bus:
        task = await start(bus, sink)
        await asyncio.to_thread(sink.stop)
        await task


@pytest.mark.parametrize("how", ["swallows the cancellation", "hangs in finally"])
async def test_a_source_that_does_not_end_is_named_at_the_deadline(memory, how):
    over, yielded = asyncio.Event(), asyncio.Event()

    class Mine(SourceNode):
        async def stream(self):
            yield b"x"
            yielded.set()
            try:
                await over.wait()
            except asyncio.CancelledError:
                if how == "hangs in finally":
                    raise
                with pytest.raises(asyncio.CancelledError):
                    await over.wait()
            finally:
                if how == "hangs in finally":
                    await over.wait()

    node, stop = Mine(NodeConfig(name="mine", publish_topic_name="out")), asyncio.Event()
    async with memory.connect(MSIGHT_DRAIN_TIMEOUT="0.1") as bus:
        task = asyncio.create_task(run_until(bus, node, stop=stop))
        await yielded.wait()
        stop.set()
        with pytest.raises(DrainTimeoutError, match=r"left: node mine \(in stream\)"):
            await task


SILENT = """
from msight_bus.nodes import NodeConfig, SinkNode, run_nodes

class Sink(SinkNode):
    async def on_message(self, data):
        pass

run_nodes(Sink(NodeConfig(name="sink", subscribe_topic_name="a")))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_connecting_ends_the_program(tmp_path, number):
    """The first process of a container ignores a SIGTERM without a handler."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        env = environment(MSIGHT_PUBSUB_BACKEND="redis", MSIGHT_REDIS_MESSAGE_BROKER_PORT=f"{port}")
        with subprocess.Popen(
            [sys.executable, program(tmp_path, SILENT)], env=env, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                server.settimeout(50)
                with server.accept()[0]:
                    process.send_signal(number)
                    _, said = process.communicate(timeout=50)
            finally:
                process.kill()
    assert process.returncode == 0, said
    assert "Stopped before the bus was connected" in said
    assert "Traceback" not in said


TWICE = """
import asyncio, os, signal, sys
if "no-uvloop" in sys.argv:
    sys.modules["uvloop"] = None
from msight_bus.nodes import NodeConfig, SinkNode, SourceNode, run_nodes

BOTH = signal.SIGTERM, signal.SIGINT

class Source(SourceNode):
    async def stream(self):
        for number in range(50):
            yield b"%d" % number
            await asyncio.sleep(0)
        await asyncio.Event().wait()

class Sink(SinkNode):
    taken = 0
    async def on_message(self, data):
        self.taken += 1
        if self.taken == 50:
            print("ready", flush=True)
            signal.pthread_sigmask(signal.SIG_BLOCK, BOTH)
            for number in BOTH:
                os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, BOTH)  # both arrive
            await asyncio.sleep(0.05)
            print("handled", flush=True)

run_nodes(
    Sink(NodeConfig(name="sink", subscribe_topic_name="a")),
    Source(NodeConfig(name="source", publish_topic_name="a")),
)
"""


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
def test_two_signals_at_a_time_are_one_request(tmp_path, loop):
    """`timeout`, or systemd together with a launcher that passes signals on, sends two."""
    with ready(program(tmp_path, TWICE), loop, env=environment(MSIGHT_DRAIN_TIMEOUT="30")) as process:
        out, said = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, "handled\n"), said


# -- processes

UNGUARDED = """
from msight_bus.nodes import NodeConfig, ProcessingNode, SourceNode, off_loop, run_nodes

class Source(SourceNode):
    async def stream(self):
        print("ready", flush=True)
        yield b"x"

class Step(ProcessingNode):
    async def process(self, data):
        return await off_loop(bytes, data, process=True)

run_nodes(
    Step(NodeConfig(name="step", subscribe_topic_name="a", publish_topic_name="b")),
    Source(NodeConfig(name="source", publish_topic_name="a")),
    end_with_sources=True,
)
"""


def test_a_program_without_a_main_guard_does_not_run_twice(tmp_path):
    env = environment(MSIGHT_DRAIN_TIMEOUT="30")
    with ready(program(tmp_path, UNGUARDED), env=env) as process:
        out, said = process.communicate(timeout=50)
    assert (process.returncode, out) == (1, ""), said
    assert "if __name__ == '__main__':" in said
    assert "ended before its result" in said


# -- classes


def test_a_handler_that_yields_is_told_to_return_a_list():
    async def process(self, data):
        yield data

    with pytest.raises(TypeError, match=r"Mine\.process must return its outputs, as a list"):
        type("Mine", (ProcessingNode,), {"process": process})


async def test_a_decorated_handler_is_awaited(memory, sink):
    def decorate(function):
        @functools.wraps(function)
        def decorated(*arguments):
            return function(*arguments)

        return decorated

    class Mine(SinkNode):
        @decorate
        async def on_message(self, data):
            handled.set()

    handled = asyncio.Event()
    async with memory.connect() as bus, running(bus, Mine(NodeConfig(name="mine", subscribe_topic_name="in"))):
        await bus.publish("in", b"x")
        await handled.wait()
