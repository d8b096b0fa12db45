"""Nodes with type parameters: how inputs are decoded and outputs are checked."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
import pytest

from msight_bus import BytesData, ConfigError, Data, ImageData, Json, Outgoing
from msight_bus.nodes import NodeConfig, ProcessingNode, SinkNode, SourceNode
from msight_bus.nodes.node import type_parameters
from tests.support.nodes import Collect, running
from tests.support.receiving import take
from tests.support.typed import HOSTILE, NAMES, TYPES, Box, FastTrack, Point, Track

T = TypeVar("T")
U = TypeVar("U")
Sizes = Json[dict[str, list[int]]]


class Measure(ProcessingNode[Track, Point]):
    async def process(self, data):
        if data.box:
            return [Point(data.speed), Outgoing(Point(data.box[0]), key="k", headers={"h": "v"})]
        return data if data.speed < 0 else Point(data.speed)


class Keep(Collect, SinkNode[Point]):
    pass


class Swapped(ProcessingNode[U, T], Generic[T, U]):
    async def process(self, data): ...


class HalfGiven(Swapped[T, Track]): ...


class Given(HalfGiven[Json[list[int]]]): ...


class Below(Given): ...


class OfList(SinkNode[Json[list[T]]], Generic[T]):
    async def on_message(self, data): ...


class Mixin(Generic[T]): ...


class Mixed(Mixin[int], OfList[str]): ...


class Untyped(ProcessingNode):
    async def process(self, data): ...


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (Measure, (Track, Point)),
        (Keep, (Point,)),
        (HalfGiven, (Track, T)),
        (Given, (Track, Json[list[int]])),
        (Below, (Track, Json[list[int]])),
        (Mixed, (Json[list[str]],)),
    ],
)
def test_type_parameters_are_found_through_bases(kind, parameters):
    assert type_parameters(kind) == parameters


@pytest.mark.parametrize("kind", [Untyped, Collect, Swapped, ProcessingNode, SourceNode])
def test_an_untyped_node_has_none(kind):
    assert all(isinstance(parameter, TypeVar) for parameter in type_parameters(kind))


def config(**fields):
    return NodeConfig(**{"name": "n", "subscribe_topic_name": "in", "publish_topic_name": "out", **fields})


async def test_inputs_are_decoded_and_outputs_are_encoded(backend, topic):
    config = NodeConfig(name="measure", subscribe_topic_name=topic, publish_topic_name=f"{topic}.out")
    node = Measure(config)
    async with backend.connect() as bus, bus.subscribe(f"{topic}.out", type=Point) as points, running(bus, node):
        await bus.publish(topic, FastTrack(speed=2.0))
        await bus.publish(topic, Track(speed=3.0, box=(4.0,)))
        received = await take(points, 3)
    by_key = sorted(received, key=lambda message: message.key or "")  # on Kafka, a key has a partition of its own
    assert [message.data for message in by_key] == [Point(2.0), Point(3.0), Point(4.0)]
    assert {message.headers["content-type"] for message in received} == {"application/msgpack"}
    assert (by_key[2].key, by_key[2].headers["h"]) == ("k", "v")


@pytest.mark.parametrize("name", NAMES)
async def test_a_sink_of_each_type(memory, name):
    kind, value, _ = TYPES[name]

    class Sink(Collect, SinkNode[kind]): ...

    sink = Sink(NodeConfig(name="s", subscribe_topic_name="in"))
    async with memory.connect() as bus, running(bus, sink), bus.publisher("in", type=kind) as publisher:
        await publisher.send(value)
        assert await sink.until(1) == [value]


@pytest.mark.parametrize("action", ["stop", "continue"])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_hostile_inputs_never_stop_a_node(memory, caplog, action, concurrency):
    sink = Keep(
        NodeConfig(
            name="s",
            subscribe_topic_name="in",
            dead_letter_topic_name="in.dead",
            action_on_error=action,
            concurrency=concurrency,
        )
    )
    async with memory.connect() as bus, bus.subscribe("in.dead") as dead, running(bus, sink):
        for payload in HOSTILE.values():
            await bus.publish("in", payload)
        await bus.publish("in", msgspec.msgpack.encode(Point(1.0)))
        assert await sink.until(1) == [Point(1.0)]
        letters = await take(dead, len(HOSTILE))
        assert sink.metrics().undecodable == len(HOSTILE)
        assert (sink.metrics().errors, sink.status) == (0, "RUNNING")
    assert [letter.payload for letter in letters] == list(HOSTILE.values())
    assert {letter.headers["msight-dead-error"] for letter in letters} == {"DecodeError"}
    assert 1 <= caplog.text.count("cannot be decoded") <= 2  # the first, and the others when the node ends
    assert "(Point: The payload is not valid data: Expected `object`, got `int`)" in caplog.text


async def test_an_output_of_another_type_is_an_error_of_the_code(memory, caplog):
    node = Measure(config(action_on_error="continue"))
    async with memory.connect() as bus, bus.subscribe("out", type=Point) as points, running(bus, node):
        await bus.publish("in", Track(speed=-1.0))
        await bus.publish("in", Track(speed=1.0))
        assert (await anext(points)).data == Point(1.0)
        assert node.metrics().errors == 1
    assert "A node's output must be Point, an Outgoing with one, or a list of these, not Track." in caplog.text


async def test_an_output_that_needs_a_type_is_an_error_that_says_so(memory, caplog):
    class Untyped(ProcessingNode):
        async def process(self, data):
            return data or {"speed": 1.0}

    node = Untyped(config(action_on_error="continue"))
    async with memory.connect() as bus, bus.subscribe("out") as messages, running(bus, node):
        await bus.publish("in", b"")
        await bus.publish("in", b"next")
        assert (await anext(messages)).payload == b"next"
    assert "not dict. A class such as ProcessingNode[bytes, Track] has outputs of another type." in caplog.text


async def test_an_output_that_is_a_list_is_wrapped(memory, caplog):
    class Lists(SourceNode[Json[list[int]]]):
        async def stream(self):
            yield Outgoing([1, 2])
            yield [[3], [4]]
            yield Outgoing(["5"])

    node = Lists(NodeConfig(name="lists", publish_topic_name="out", action_on_error="continue"))
    async with memory.connect() as bus, bus.subscribe("out", type=Json[list[int]]) as lists, running(bus, node):
        assert [message.data for message in await take(lists, 3)] == [[1, 2], [3], [4]]
    assert "cannot be sent as Json[list[int]]" in caplog.text


async def test_a_node_of_bytes_decodes_nothing(memory):
    class Raw(ProcessingNode[bytes, bytes]):
        async def process(self, data):
            return data

    payload = Track(speed=1.0).serialize()
    async with memory.connect() as bus, bus.subscribe("out") as messages, running(bus, Raw(config())):
        await bus.publish("in", payload)
        assert (await anext(messages)).payload == payload


async def test_a_node_of_data_decodes_any_class_and_refuses_bytes(memory):
    class All(Collect, SinkNode[Data]): ...

    sink = All(NodeConfig(name="s", subscribe_topic_name="in"))
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", b"plain")
        for value in (Track(speed=1.0), BytesData(data=b"x")):
            await bus.publish("in", value)
        assert [type(item) for item in await sink.until(2)] == [Track, BytesData]
        assert sink.metrics().undecodable == 1


@pytest.mark.parametrize("given", [None, Track, FastTrack])
def test_the_configuration_may_narrow_a_type(given):
    node = Measure(config(subscribe_topic_data_type=given))
    assert node.config.subscribe_topic_data_type is (given or Track)
    assert node.config.publish_topic_data_type is Point


@pytest.mark.parametrize("given", [Data, ImageData, Point, bytes, Json[Track], Track | ImageData])
def test_a_type_that_contradicts_the_class_is_an_error(given):
    with pytest.raises(
        ConfigError, match=r"NodeConfig\.subscribe_topic_data_type of 'n'.*neither Track nor a subclass"
    ):
        Measure(config(subscribe_topic_data_type=given))
    with pytest.raises(ConfigError, match=r"NodeConfig\.publish_topic_data_type of 'n'.*neither Point nor a subclass"):
        Measure(config(publish_topic_data_type=given if given is not Point else Box))


@pytest.mark.parametrize("parameter", [int, "Track", list[int], Track | None])
def test_a_type_parameter_that_no_topic_can_have_is_an_error(parameter):
    class Wrong(SinkNode[parameter]):
        async def on_message(self, data): ...

    with pytest.raises(
        ConfigError, match=r"subscribe_topic_data_type of 'n' must fit the type parameter of Wrong: type must be"
    ):
        Wrong(NodeConfig(name="n", subscribe_topic_name="in"))


async def test_any_is_no_type(memory):
    class Anything(Collect, SinkNode[Any]): ...

    sink = Anything(NodeConfig(name="s", subscribe_topic_name="in"))
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", b"plain")
        assert await sink.until(1) == [b"plain"]


async def test_the_configuration_alone_gives_a_type(memory):
    sink = Collect(NodeConfig(name="s", subscribe_topic_name="in", subscribe_topic_data_type=Sizes))
    async with memory.connect() as bus, running(bus, sink):
        await bus.publish("in", b'{"a": [1]}')
        assert await sink.until(1) == [{"a": [1]}]
