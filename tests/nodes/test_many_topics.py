"""Nodes whose input is a list of topics and patterns: configuration, order, log lines, announcements."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import pytest

from msight_bus import ConfigError, UnsupportedError
from msight_bus.announcements import MAX_ANNOUNCEMENT_BYTES, NodeStatus
from msight_bus.nodes import NodeConfig, run_until
from msight_bus.topics import NODES_TOPIC
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running, start

CAMERAS = ["camera.ne", "camera.nw", "camera.se", "camera.sw", "lidar"]


def config(topics, **fields):
    return NodeConfig(**{"name": "n", "subscribe_topic_name": topics, **fields})


async def echo(data):
    return data


# -- configuration


def test_the_input_is_a_topic_a_pattern_or_a_list():
    assert config("camera.ne").inputs == ("camera.ne",)
    assert config("camera.*").inputs == ("camera.*",)
    assert config(["camera.*", "lidar"]).inputs == config(("camera.*", "lidar")).inputs == ("camera.*", "lidar")
    assert NodeConfig(name="n", publish_topic_name="a").inputs == ()


def test_a_list_that_changes_later_does_not_change_the_configuration():
    topics = ["a", "b"]
    made = config(topics)
    topics.append("c")
    assert made.inputs == ("a", "b")
    assert made == config(("a", "b"))


@pytest.mark.parametrize(
    ("topics", "reason"),
    [
        ([], "The list of topics is empty"),
        (["a", "b", "a"], "'a' is in the list of topics twice"),
        (["a", "b c"], "'b c' is not a valid topic"),
        ("camera/*", "'camera/\\*' is not a valid pattern.*Use '\\*' or a list"),
        ("cam*.ne", "the part 'cam\\*' is not a whole wildcard"),
        (["a", 3], "must be a str, not int"),
        (["a", "_msight.nodes"], "reserved for the bus"),
        ({"a", "b"}, "a list of them, not set"),
    ],
)
def test_a_wrong_input_names_the_field_and_the_entry(topics, reason):
    with pytest.raises(ConfigError, match=rf"^NodeConfig\.subscribe_topic_name must be a topic, a pattern .*{reason}"):
        config(topics)


@pytest.mark.parametrize("field", ["publish_topic_name", "dead_letter_topic_name"])
def test_a_node_does_not_publish_on_a_topic_of_its_list(field):
    with pytest.raises(ConfigError, match=rf"NodeConfig\.{field} must differ.*would receive its own messages"):
        config(["camera.ne", "lidar"], **{field: "lidar"})


@pytest.mark.parametrize("pattern", ["camera.*", "camera.>", ">", "*.ne"])
def test_a_node_does_not_publish_where_its_pattern_matches(pattern):
    with pytest.raises(ConfigError, match=r"NodeConfig\.publish_topic_name must differ.*its own messages"):
        config(["lidar", pattern], publish_topic_name="camera.ne")


async def test_a_pattern_matches_neither_other_outputs_nor_dead_letters(memory):
    async with memory.connect() as bus:
        config("camera.*", publish_topic_name="camera.ne.objects", dead_letter_topic_name="camera.dead").check_for(bus)
        config(">", dead_letter_topic_name="camera.dead").check_for(bus)


@pytest.mark.parametrize("given", ["latest", "earliest", datetime(2026, 1, 1, tzinfo=UTC), {0: 5}])
def test_a_start(given):
    assert config("a", start=given).start == given


@pytest.mark.parametrize(
    ("topics", "given", "reason"),
    [
        ("a", "newest", "must be 'latest', 'earliest'"),
        ("a", {}, "must be 'latest', 'earliest'"),
        (["a", "b"], {0: 5}, r"must be {\(topic, partition\): offset}"),
        (["a", "b"], {("c", 0): 5}, "names the topic 'c'"),
        ("a.*", {("a.b", 0): 5}, "cannot be a mapping with a pattern"),
    ],
)
def test_a_wrong_start(topics, given, reason):
    with pytest.raises(ConfigError, match=rf"^NodeConfig\.start {reason}"):
        config(topics, start=given)


# -- what depends on the settings of the bus


async def test_a_dead_letter_topic_has_the_suffix_of_the_bus(memory):
    node = Collect(config("in", dead_letter_topic_name="failed"))
    async with memory.connect() as bus:
        with pytest.raises(
            ConfigError, match=r"dead_letter_topic_name of 'n' must end in '\.dead' \(MSIGHT_DEAD_LETTER_SUF"
        ):
            await node.run(bus)
    async with memory.connect(MSIGHT_DEAD_LETTER_SUFFIX="failed") as bus, running(bus, node):
        assert node.status is NodeStatus.RUNNING


async def test_the_patterns_of_a_node_match_by_the_suffix_of_the_bus(memory):
    node = Apply(config(">", publish_topic_name="out.dead"), echo)
    async with memory.connect(MSIGHT_DEAD_LETTER_SUFFIX=".failed") as bus:
        with pytest.raises(ConfigError, match="its own messages"):
            await node.run(bus)


async def test_no_node_starts_beside_one_that_contradicts_the_settings(memory):
    good, bad = Collect(config("in", name="good")), Collect(config("in", dead_letter_topic_name="failed"))
    async with memory.connect() as bus:
        with pytest.raises(ConfigError, match="'failed'"):
            await run_until(bus, good, bad, stop=asyncio.Event())
    assert good._node_run is None


async def test_a_start_needs_a_backend_with_replay(memory):
    async with memory.connect() as bus:
        with pytest.raises(UnsupportedError, match="start must be 'latest', not 'earliest'"):
            await Collect(config("in", start="earliest")).run(bus)


async def test_a_new_group_begins_at_the_start(kafka, topic):
    node = Collect(config(topic, name=topic.replace(".", "-"), start="earliest"))
    async with kafka.connect() as bus, asyncio.timeout(DEADLINE * 2):
        await bus.publish(topic, b"before the node")
        async with running(bus, node):
            assert await node.until(1) == [b"before the node"]
        await bus.publish(topic, b"while it was away")
        async with running(bus, node):  # at the position of the group
            assert await node.until(2) == [b"before the node", b"while it was away"]


# -- running


async def test_outputs_keep_the_order_of_arrival_over_all_topics(memory):
    release = asyncio.Event()
    arrived = []

    async def slow_at_first(data):
        arrived.append(data)
        if len(arrived) == 1:
            await release.wait()
        elif len(arrived) == 4:
            release.set()
        return data

    node = Apply(config(["a", "b"], publish_topic_name="out", concurrency=4), slow_at_first)
    sink = Collect(config("out", name="sink"))
    async with memory.connect() as bus, running(bus, sink, node):
        for number in range(8):
            await bus.publish("ab"[number % 2], b"%d" % number)
            await asyncio.sleep(0)
        assert await sink.until(8) == arrived
    assert {int(data) % 2 for data in arrived[:4]} == {0, 1}  # inputs of both topics were handled at a time


@pytest.mark.parametrize(("inputs", "outputs"), [("a.b", ["other", "b.c"]), ("a.*", "b.>")], ids=["list", "pattern"])
async def test_a_node_is_drained_after_those_that_feed_it(memory, inputs, outputs):
    stop = asyncio.Event()
    source = Numbers(NodeConfig(name="source", publish_topic_name="a.b"), count=100)
    middle = Apply(config(inputs, name="middle", publish_topic_name="b.c"), echo)
    sink = Collect(config(outputs, name="sink"))
    async with memory.connect() as bus, asyncio.timeout(DEADLINE):
        await run_until(bus, sink, middle, source, stop=stop, end_with_sources=True)
    assert len(sink.items) == 100


async def test_a_node_receives_what_its_entries_match(backend, topic):
    name = topic.replace(".", "-")
    node = Apply(config([f"{topic}.camera.*", f"{topic}.lidar"], name=name, publish_topic_name=f"{topic}.out"), echo)
    sink = Collect(config(f"{topic}.out", name=f"{name}-sink"))
    inputs = [f"{topic}.camera.ne", f"{topic}.camera.sw", f"{topic}.lidar"]
    async with backend.connect() as bus, asyncio.timeout(DEADLINE * 2):
        for each in [
            *inputs,
            f"{topic}.radar",
        ]:  # topics exist before the nodes: Kafka looks for others every few seconds
            await bus.publish(each, b"before")
        async with running(bus, sink, node):
            for number in range(5):
                for each in [*inputs, f"{topic}.radar"]:
                    await bus.publish(each, f"{each} {number}".encode())
            assert sorted(await sink.until(15)) == sorted(
                f"{each} {number}".encode() for each in inputs for number in range(5)
            )
            assert node.metrics().missing == 0


async def test_the_first_line_names_three_topics(memory, caplog):
    caplog.set_level(logging.INFO)
    async with memory.connect() as bus:
        async with running(bus, Apply(config(CAMERAS, publish_topic_name="out"), echo)):
            pass
        async with running(bus, Collect(config(CAMERAS[:3]))):
            pass
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Running on")]
    assert lines == [
        "Running on memory: camera.ne, camera.nw, camera.se and 2 more -> out",
        "Running on memory: input camera.ne, camera.nw, camera.se",
    ]


@pytest.mark.parametrize(("other", "warned"), [(["b", "c"], True), (["a", "b"], False)])
async def test_two_nodes_of_one_name_that_share_all_topics_are_workers(memory, caplog, other, warned):
    async with memory.connect() as bus:
        async with running(bus, Collect(config(["a", "b"])), Collect(config(other))):
            pass
    assert ("Two nodes of this process" in caplog.text) == warned


# -- announcements

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,200}\Z")]


class EarlierInfo(msgspec.Struct):
    """The topics of an announcement as earlier versions decode them."""

    name: Name
    publish_topic: Name | None = None
    subscribe_topic: Name | None = None


@pytest.mark.parametrize(
    ("topics", "single", "inputs", "more"),
    [
        ("camera.ne", "camera.ne", ("camera.ne",), 0),
        ("camera.*", "camera.*", ("camera.*",), 0),
        (["camera.*", "lidar"], None, ("camera.*", "lidar"), 0),
        (CAMERAS, None, tuple(CAMERAS[:3]), 2),
        ([f"t{number}.{'x' * 190}" for number in range(1000)], None, None, 997),
    ],
)
async def test_a_node_announces_three_topics_and_the_number_of_the_others(memory, topics, single, inputs, more):
    node = Apply(config(topics, publish_topic_name="out"), echo)
    async with memory.connect() as bus, bus.core.subscribe((NODES_TOPIC,)) as announcements:
        registry = await bus.nodes()
        task = await start(bus, node)
        await registry.wait_until(lambda nodes: "n" in nodes)
        seen = registry["n"]
        task.cancel()
        await asyncio.wait([task])
        payload = (await anext(announcements)).payload
    assert (seen.publish_topic, seen.output, seen.subscribe_topic, seen.more_inputs) == ("out", "out", single, more)
    assert inputs is None or seen.inputs == inputs
    assert len(seen.inputs) <= 3
    assert len(payload) < MAX_ANNOUNCEMENT_BYTES
    earlier = msgspec.json.decode(payload, type=EarlierInfo)
    assert earlier.publish_topic == "out"
    assert earlier.subscribe_topic == ("camera.ne" if topics == "camera.ne" else None)
