"""``topics``: who publishes and who subscribes, and what arrives."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import threading

import pytest
from rich.console import Console

from msight_bus.announcements import NodeInfo, NodeMetrics, NodeStatus, ProgramInfo, ProgramTopic
from msight_bus.cli import topics as command_module
from msight_bus.cli.topic_rates import Arrivals
from msight_bus.cli.topics import Endpoints, endpoints_of, show
from msight_bus.nodes import NodeConfig
from tests.support.brokers import Backend, make_backend
from tests.support.commands import command, in_a_thread, publishing
from tests.support.nodes import Collect, Numbers, running

SILENT = {"MSIGHT_ANNOUNCE": "false"}


def info(**fields):
    made = {"name": "n", "instance": "1", "type": "T", "device": "d", "status": NodeStatus.RUNNING}
    return NodeInfo(**{**made, "started_at": 0.0, "heartbeat_interval": 10.0, **fields})


def test_the_ends_of_the_topics():
    topics = endpoints_of(
        [
            info(name="cam", publish_topic="frames", metrics=NodeMetrics(rate_out=30)),
            info(name="cam", instance="2", publish_topic="frames", metrics=NodeMetrics(rate_out=10)),
            info(name="detector", subscribe_topic="frames", publish_topic="boxes"),
            info(name="lost", subscribe_topic="frames", status=NodeStatus.LOST),
            info(name="stopped", publish_topic="old", ended=True),
            info(name="fusion", inputs=("boxes", "lidar.*"), output="tracks/all"),
        ]
    )
    assert topics == {
        "frames": Endpoints({"cam"}, {"detector"}, 40.0),
        "boxes": Endpoints({"detector"}, {"fusion"}, 0.0),
        "lidar.*": Endpoints(set(), {"fusion"}, 0.0),
        "tracks/all": Endpoints({"fusion"}, set(), 0.0),
    }


def test_the_ends_of_lists_and_patterns():
    topics = endpoints_of(
        [
            info(name="cam", output="cam.ne"),
            info(name="detector", inputs=("cam.*", "lidar"), output="boxes"),
            info(name="typo", inputs=("camera.>",)),
        ],
        observed=["cam.foreign", "boxes"],
    )
    assert {name: (ends.publishers, ends.subscribers) for name, ends in topics.items()} == {
        "cam.ne": ({"cam"}, {"detector"}),
        "cam.foreign": (set(), {"detector"}),
        "lidar": (set(), {"detector"}),
        "boxes": ({"detector"}, set()),
        "camera.>": (set(), {"typo"}),
    }


def program(process, *topics, **fields):
    made = {"name": "edge", "instance": str(process), "host": "h", "process": process, "started_at": 0.0}
    return ProgramInfo(**{**made, "heartbeat_interval": 10.0, "topics": topics, **fields})


def test_programs_are_ends_of_topics():
    topics = endpoints_of(
        [
            info(name="detector", inputs=("frames",), output="boxes"),
            program(7, ProgramTopic(topic="frames", published=True, rate_out=30.0)),
            program(
                8, ProgramTopic(topic="frames", published=True, rate_out=2.0), ProgramTopic(topic="*", subscribed=True)
            ),
            program(9, ProgramTopic(topic="boxes", subscribed=True), status=NodeStatus.LOST),
            program(10, ProgramTopic(topic="old", published=True), ended=True),
        ]
    )
    assert topics == {
        "frames": Endpoints({"edge[7]", "edge[8]"}, {"detector", "edge[8]"}, 32.0),
        "boxes": Endpoints({"detector"}, {"edge[8]"}, 0.0),
    }


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_table_fits(columns, monkeypatch):
    out = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    monkeypatch.setattr(command_module, "Console", lambda **_: out)
    ends = Endpoints({"camera_north_east", "camera_south_west"}, {"detector_north_east"}, 1234.5)
    arrived = Arrivals(count=31, bytes=31 * 200_000, first=0.0, last=1.0)
    show({"intersection.cam_ne": ends}, {"intersection.cam_ne": arrived, "foreign": Arrivals()}, 1.0, as_json=False)
    lines = out.file.getvalue().splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= columns
    assert "30.00" in text
    assert ("1,234.5" in text) == ("announced" in "\n".join(lines[:2]))
    assert ("Not shown on" in text) == (columns < 200)


@pytest.mark.parametrize("observed", [False, True])
def test_a_terminal_shows_the_topics_with_the_highest_rates_and_a_pipe_all(monkeypatch, capsys, observed):
    rates = {f"t{number:04}": 1.0 + number * 7919 % 3700 for number in range(3700)}
    ends = {topic: Endpoints({"cam"}, set(), -rate if observed else rate) for topic, rate in rates.items()}
    arrived = {topic: Arrivals(count=2, first=1.0 - 1 / rate, last=1.0) for topic, rate in rates.items()}
    out = Console(file=io.StringIO(), width=80, height=30, force_terminal=True, color_system=None)
    with monkeypatch.context() as patch:
        patch.setattr(command_module, "Console", lambda **_: out)
        show(ends, arrived if observed else None, 1.0, as_json=False)
    text = out.file.getvalue()
    assert re.findall(r"^t\d{4}", text, re.MULTILINE) == sorted(rates, key=rates.get, reverse=True)[:24]
    assert text.splitlines()[-1] == "… and 3,676 more topics: name a pattern, or use --json"
    capsys.readouterr()
    for as_json in (False, True):
        show(ends, None, 1.0, as_json=as_json)
        assert sorted(rates) == re.findall(r"\bt\d{4}\b", capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_a_name_and_a_pattern_select(kind, topic):
    backend = make_backend(kind)
    names = [f"{topic}.a", f"{topic}.b.c", f"{topic}.b.d", f"{topic}.e"]
    with publishing(backend, {name: lambda _: b"x" for name in names}, rate=100):
        result = command(backend, "topics", f"{topic}.a", f"{topic}.b.*", "--observe", "1", "--json")
    assert [json.loads(line)["topic"] for line in result.stdout.splitlines()] == names[:3]
    assert command(backend, "topics", "a b").exit_code == 2


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_nodes_are_listed_with_their_topics(kind, topic, monkeypatch):
    monkeypatch.setattr(command_module, "ALL_ANNOUNCED", 1.5)
    backend = make_backend(kind)

    async def nodes(bus, ready, stop):
        source = Numbers(NodeConfig(name="camera", publish_topic_name=topic, heartbeat_update_interval=0.2))
        sink = Collect(NodeConfig(name="store", subscribe_topic_name=topic, heartbeat_update_interval=0.2))
        get = source.get_data

        async def slowly():
            await asyncio.sleep(0.01)
            return await get()

        source.get_data = slowly
        async with running(bus, sink, source):
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    with in_a_thread(backend, nodes):
        listed = command(backend, "topics", "--json")
        table = command(backend, "topics")
    assert (listed.exit_code, table.exit_code) == (0, 0)
    (row,) = [row for row in map(json.loads, listed.stdout.splitlines()) if row["topic"] == topic]
    assert (row["publishers"], row["subscribers"], row["observed"]) == (["camera"], ["store"], None)
    assert row["announced_rate"] > 1
    assert re.search(rf"^{topic} +camera +[\d.]+  store$", table.stdout, re.MULTILINE)
    assert (
        "Not shown: topics that no program announces (see --observe), and subscribers that do not announce themselves."
        in table.stderr
    )


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_programs_are_listed_with_their_topics(kind, topic, monkeypatch):
    monkeypatch.setattr(command_module, "ALL_ANNOUNCED", 1.5)
    monkeypatch.setattr("msight_bus.program_announcer.INTERVAL", 0.2)
    monkeypatch.setattr("msight_bus.program_announcer.FIRST_AFTER", 0.2)
    backend = make_backend(kind)
    named = Backend(kind, {**backend.env, "MSIGHT_EDGE_DEVICE_NAME": "edge"})

    async def work(bus, ready, stop):
        async with bus.subscribe([f"{topic}.in", f"{topic}.all.*"]):
            await bus.nodes()  # on Kafka, it creates the topic
            ready()
            while not stop.is_set():
                await bus.publish(f"{topic}.all.cam", b"x")
                await asyncio.sleep(0.01)

    with in_a_thread(named, work):
        listed = command(backend, "topics", "--json")
        shown = command(backend, "status", "--seconds", "1", "--json")
    label = f"edge[{os.getpid()}]"
    rows = {row["topic"]: row for row in map(json.loads, listed.stdout.splitlines())}
    assert rows[f"{topic}.in"]["subscribers"] == [label]
    row = rows[f"{topic}.all.cam"]
    assert (row["publishers"], row["subscribers"]) == ([label], [label])
    assert row["announced_rate"] > 1
    assert json.loads(shown.stdout)["programs"]["RUNNING"] >= 1


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_what_arrives_is_observed_whoever_publishes(kind, topic):
    backend = make_backend(kind)
    with publishing(
        Backend(kind, {**backend.env, **SILENT}),
        {f"{topic}.a": lambda _: bytes(1000), f"{topic}.b": lambda _: b""},
        rate=100,
    ):
        result = command(backend, "topics", "--observe", "1", "--json")
        shown = command(backend, "tail", f"{topic}.*", f"{topic}.a", "--count", "20", "--json")
    rows = {row["topic"]: row for row in map(json.loads, result.stdout.splitlines())}
    one, two = rows[f"{topic}.a"], rows[f"{topic}.b"]
    assert (one["publishers"], one["subscribers"]) == ([], [])
    assert (one["observed"]["mean_bytes"], two["observed"]["mean_bytes"]) == (1000, 0)
    assert one["observed"]["rate"] > 1
    assert "Not shown: topics without traffic, and subscribers that do not announce themselves." in result.stderr
    tailed = [json.loads(line)["topic"] for line in shown.stdout.splitlines()]
    assert (len(tailed), set(tailed)) == (20, {f"{topic}.a", f"{topic}.b"})


def test_traffic_on_channels_that_are_no_topics_is_counted(redis):
    import redis as client

    stop = threading.Event()

    def publish():
        with client.Redis(port=int(redis.env["MSIGHT_REDIS_MESSAGE_BROKER_PORT"])) as foreign:
            while not stop.wait(0.01):
                foreign.publish("a \x1b[2J", b"x")

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        result = command(redis, "topics", "--observe", "1")
    finally:
        stop.set()
        publisher.join()
    assert re.search(
        r"Not shown: \d+ messages of more topics, or on channels that are not valid topics\.", result.stderr
    )
    assert "\x1b" not in result.output
