"""Mistakes in the code of users: each is a clear error, or is counted."""

from __future__ import annotations

import asyncio
import inspect
import sys
import warnings

import msgpack
import numpy as np
import pytest

from msight_bus import BusSettings, BytesData, CapabilityWarning, ConfigError, Data, SensorData, connect, run, run_nodes
from msight_bus.nodes import NodeConfig, Outgoing, ProcessingNode, SinkNode, SourceNode, paced, run_until
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running, start
from tests.support.receiving import take


def config(**fields):
    return NodeConfig(**{"name": "n", "subscribe_topic_name": "in", "publish_topic_name": "out", **fields})


# -- the class


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (ProcessingNode, "process"),
        (SinkNode, "on_message"),
        (SourceNode, "get_data"),
        (SinkNode, "on_start"),
        (SourceNode, "on_stop"),
    ],
)
def test_def_instead_of_async_def_is_an_error_when_the_class_is_made(base, name):
    with pytest.raises(TypeError, match=rf"Mine\.{name} is awaited: write `async def {name}`.*off_loop"):
        type("Mine", (base,), {name: lambda self, *_: None})


def test_a_stream_that_is_no_generator_is_an_error_when_the_class_is_made():
    async def stream(self):
        return [b"x"]

    with pytest.raises(
        TypeError, match=r"Mine\.stream must be an async generator: write `async def stream` with `yield`"
    ):
        type("Mine", (SourceNode,), {"stream": stream})


def test_a_stream_that_is_a_plain_generator_is_an_error_when_the_class_is_made():
    def stream(self):
        yield b"x"

    with pytest.raises(
        TypeError, match=r"Mine\.stream must be an async generator: write `async def stream` with `yield`"
    ):
        type("Mine", (SourceNode,), {"stream": stream})


async def test_a_node_that_does_not_call_super_init_is_an_error(memory):
    class Mine(Collect):
        def __init__(self):
            pass

    async with memory.connect() as bus:
        with pytest.raises(ConfigError, match=r"Mine\.__init__ must call super\(\)\.__init__\(config\)"):
            await run_until(bus, Mine(), stop=asyncio.Event())


async def test_a_coroutine_as_on_event_is_refused(memory):
    class Mine(Collect):
        async def on_event(self, event):
            pass

    async with memory.connect() as bus:
        with pytest.raises(TypeError, match="on_event must not be a coroutine function"):
            await Mine(NodeConfig(name="n", subscribe_topic_name="in")).run(bus)


# -- the configuration


@pytest.mark.parametrize("name", ["two words", "k\u00f6ln", "", "a..b", "_x", "a\n", 5, "x" * 195])
def test_names_that_cannot_be_used(name):
    with pytest.raises(ConfigError, match=r"NodeConfig\.name must be letters, digits"):
        NodeConfig(name=name, subscribe_topic_name="in")


def test_an_output_that_is_the_input_is_refused():
    with pytest.raises(ConfigError, match="publish_topic_name must differ from the topics of subscribe_topic_name"):
        config(publish_topic_name="in")


@pytest.mark.parametrize(("field", "value"), [("key", 5), ("key", "\ud800"), ("while_disconnected", "sleep")])
def test_new_fields_are_checked(field, value):
    with pytest.raises(ConfigError, match=rf"NodeConfig\.{field} must be "):
        config(**{field: value})


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "30", True])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match="rate must be a number of ticks a second"):
        paced(rate)


# -- data


async def test_an_error_in_the_constructor_of_data_is_an_undecodable_input(memory, caplog):
    class Asserting(Data, tag="tests.nodes.Asserting"):
        value: int

        def __post_init__(self):
            assert self.value > 0

    node = Collect(NodeConfig(name="n", subscribe_topic_name="in"))
    async with memory.connect() as bus, running(bus, node):
        await bus.publish("in", msgpack.packb({"data_type": "tests.nodes.Asserting", "value": -1}))
        await bus.publish("in", b"fine")
        assert await node.until(1) == [b"fine"]
        metrics = node.metrics()
        assert (metrics.undecodable, metrics.errors) == (1, 0)
    assert "AssertionError" in caplog.text


@pytest.mark.parametrize("bound", [{"MSIGHT_MAX_NESTING": "3"}, {"MSIGHT_MAX_DECODED_BYTES": "200"}])
async def test_the_bounds_of_the_settings_hold_for_the_inputs_of_a_node(memory, bound):
    deep = msgpack.packb({"data_type": "tests.nodes.Scored", "score": 1.0, "note": [[[["x" * 300]]]]})
    node = Collect(NodeConfig(name="n", subscribe_topic_name="in"))
    async with memory.connect(**bound) as bus, running(bus, node):
        await bus.publish("in", deep)
        await bus.publish("in", b"fine")
        assert await node.until(1) == [b"fine"]
        assert node.metrics().undecodable == 1


class Scored(SensorData, tag="tests.nodes.Scored"):
    score: float
    note: object = None


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_output_that_cannot_be_encoded_is_an_error_of_the_code(memory, caplog, concurrency):
    async def score(data):
        return Scored(score=np.float32(0.5), note=object() if data == b"bad" else None)

    node = Apply(config(action_on_error="continue", concurrency=concurrency), score)
    async with memory.connect() as bus, bus.subscribe("out") as outputs, running(bus, node):
        await bus.publish("in", b"bad")
        await bus.publish("in", b"good")
        (message,) = await take(outputs, 1)
        assert message.data.score == 0.5
        assert node.metrics().errors == 1
    assert "Scored.note of type object" in caplog.text


async def test_outputs_without_a_key_get_the_key_of_the_configuration(memory):
    async def both(data):
        return [data, Outgoing(data, key="own"), BytesData(data=data)]

    node = Apply(config(key="cam_ne"), both)
    async with memory.connect() as bus, bus.subscribe("out") as outputs, running(bus, node):
        await bus.publish("in", b"x")
        assert [message.key for message in await take(outputs, 3)] == ["cam_ne", "own", "cam_ne"]


async def test_the_device_of_the_settings_is_in_the_data(monkeypatch):
    monkeypatch.setenv("MSIGHT_EDGE_DEVICE_NAME", "by variable")
    assert BytesData(data=b"").device_name == "by variable"
    async with connect(BusSettings(backend="memory", edge_device_name="by settings")):
        assert BytesData(data=b"").device_name == "by settings"
    assert BytesData(data=b"").device_name == "by variable"


# -- sources


async def test_a_generator_that_fails_on_close_is_counted_and_restarted(memory):
    class Odd(SourceNode):
        streams = 0

        async def stream(self):
            self.streams += 1
            try:
                yield 42 if self.streams == 1 else b"%d" % self.streams
            finally:
                if self.streams == 1:
                    raise OSError("while closing")

    node = Odd(NodeConfig(name="n", publish_topic_name="out", action_on_error="continue"))
    async with memory.connect() as bus, bus.subscribe("out") as outputs:
        await node.run(bus)
        assert (await take(outputs, 1))[0].payload == b"2"
    assert node.metrics().errors == 2
    assert node.status == "STOPPED"


async def test_a_generator_that_never_yields_can_be_stopped(memory):
    class Silent(SourceNode):
        async def stream(self):
            while True:
                await asyncio.sleep(0.001)
            yield

    async with memory.connect() as bus, asyncio.timeout(DEADLINE):
        async with running(bus, Silent(NodeConfig(name="n", publish_topic_name="out"))):
            await asyncio.sleep(0.01)


async def test_a_rate_is_kept_and_missed_ticks_are_skipped(msight_simulation):
    loop = asyncio.get_running_loop()
    begun = loop.time()
    came = []
    async for number in paced(10):
        came.append((number, round(loop.time() - begun, 3)))
        if number == 3:
            await asyncio.sleep(0.35)
        if number >= 8:
            break
    assert came == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (6, 0.65), (7, 0.7), (8, 0.8)]


# -- hooks


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
async def test_an_error_in_a_hook_is_logged_once_and_ends_the_node(memory, caplog, hook):
    async def fail(self):
        raise OSError("my own")

    await run_with_hook(memory, hook, fail, OSError, "my own")
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
async def test_a_hook_that_exits_is_an_error_and_ends_the_node(memory, hook):
    async def fail(self):
        sys.exit(3)

    await run_with_hook(memory, hook, fail, RuntimeError, r"SystemExit\(3\)")


async def run_with_hook(memory, hook, fail, kind, text):
    node = type("Mine", (Collect,), {hook: fail})(NodeConfig(name="n", subscribe_topic_name="in"))
    async with memory.connect() as bus:
        task = await start(bus, node)
        node.stop()
        with pytest.raises(kind, match=text):
            await task
    assert node.status == "ERROR"


# -- programs


async def test_two_nodes_of_one_name_in_a_process_both_run(memory):
    nodes = [Collect(NodeConfig(name="same", subscribe_topic_name="in")) for _ in range(2)]
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, *nodes):
            await bus.publish("in", b"x")
            for node in nodes:
                assert await node.until(1) == [b"x"]
            await registry.wait_until(lambda known: len(known.instances("same")) == 2)


async def test_a_thousand_nodes(memory):
    count = 1000
    stop = asyncio.Event()
    sinks = [Collect(NodeConfig(name=f"sink{n}", subscribe_topic_name=f"t{n}")) for n in range(count)]
    async with memory.connect() as bus:
        registry = await bus.nodes()
        task = asyncio.create_task(run_until(bus, *sinks, stop=stop))
        while sum(info.status == "RUNNING" for info in registry) < count:
            await asyncio.sleep(0.1)  # `wait_until` would list all nodes at each of a thousand announcements
        for n in range(count):
            await bus.publish(f"t{n}", b"x")
        for sink in sinks:
            await sink.until(1)
        stop.set()
        await task


def test_a_warning_about_a_group_shows_the_users_line(redis):
    node = Collect(NodeConfig(name="n", subscribe_topic_name="in", group_id="g"))
    source = Numbers(NodeConfig(name="s", publish_topic_name="in"), count=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1
        run_nodes(node, source, settings=redis.settings(), end_with_sources=True)
    (warning,) = [one for one in caught if one.category is CapabilityWarning]
    assert (warning.filename, warning.lineno) == (__file__, line)


def test_in_a_running_loop_the_error_says_what_to_await():
    ran = []

    async def main():
        ran.append(True)

    async def cell():
        with pytest.raises(RuntimeError, match=r"run_until\(bus"):
            run_nodes(Collect(NodeConfig(name="n", subscribe_topic_name="a")))
        with pytest.raises(RuntimeError, match=r"`await main\(\)`"):
            run(main())

    asyncio.run(cell())
    assert not ran
