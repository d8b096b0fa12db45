"""The live table: what it shows of a registry, and the command."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import signal
import sys
import time

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from msight_bus.announcements import NodeInfo, NodeMetrics, NodeStatus, ProgramInfo, ProgramTopic
from msight_bus.cli import app
from msight_bus.cli.observing import READING
from msight_bus.cli.top import NodeTable, render, watch
from msight_bus.doctor.checks import topics_of
from msight_bus.message import Message
from msight_bus.nodes import NodeConfig
from msight_bus.registry import Registry
from msight_bus.topics import NODES_TOPIC
from tests.support.brokers import make_backend
from tests.support.commands import command
from tests.support.nodes import DEADLINE, Collect, running


def shown(registry, width=160, **options):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(registry, **options))
    return console.file.getvalue()


def registry_of(*infos):
    registry = Registry(None)
    for info in infos:
        registry._observe(Message(NODES_TOPIC, msgspec.json.encode(info), received_at=time.time()))
    return registry


def info(**fields):
    made = {"name": "detector", "instance": "1", "type": "T", "device": "d", "status": NodeStatus.RUNNING}
    return NodeInfo(**{**made, "started_at": 0.0, "heartbeat_interval": 10.0, **fields})


def program(*topics, **fields):
    made = {"name": "edge", "instance": "1", "host": "h", "process": 7, "started_at": 0.0, "heartbeat_interval": 10.0}
    return ProgramInfo(**{**made, "topics": topics, **fields})


def test_a_row_for_each_node_with_its_topics():
    metrics = NodeMetrics(
        rate_in=30.04,
        rate_out=1234.5,
        queued=7,
        missing=34,
        dropped=12,
        errors=1,
        latency_p50_ms=8.25,
        latency_p99_ms=101,
    )
    text = shown(
        registry_of(
            info(subscribe_topic="cam", publish_topic="objects", metrics=metrics),
            info(name="sink", subscribe_topic="objects", status=NodeStatus.ERROR),
        )
    )
    assert "Nodes (2)" in text
    third, first, second = [line for line in text.splitlines() if "<-" in line or "->" in line]
    for part in ("detector", "<- cam (no node)", "30.0", " 7 ", " 34 ", " 12 ", " 1 ", "8.2", "RUNNING"):
        assert part in first
    assert "-> objects " in second
    assert "no node" not in second + third
    assert "1,234 " in second
    assert "101.0" in second
    for part in ("sink", "<- objects", "ERROR"):
        assert part in third


def test_80_columns_cut_no_number():
    metrics = NodeMetrics(
        rate_in=1234.4,
        rate_out=30,
        queued=10_000,
        missing=123_456,
        dropped=12_345,
        errors=12,
        latency_p50_ms=1505.5,
        latency_p99_ms=54321,
    )
    registry = registry_of(
        info(name="ne", subscribe_topic="cam_ne", publish_topic="objects_ne", metrics=metrics),
        info(name="sink", subscribe_topic="objects_ne"),
        info(name="cam", publish_topic="cam_ne"),
    )
    text = shown(registry, width=80)
    assert "…" not in text
    for part in ("-> objects_ne ", "1,234", "10,000", "12,345", "123,456", "1,506", "54,321", "RUNNING", "heard"):
        assert part in text
    assert re.search(r"RUNNING +\d+ s", text)


@pytest.mark.filterwarnings("default")
def test_a_warning_about_the_environment_is_a_sentence(monkeypatch):
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKED", "nats")
    result = CliRunner().invoke(app, ["top", "--backend", "memory", "--seconds", "0"])
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "Warning: MSIGHT_PUBSUB_BACKED is not a variable of msight_bus and has no effect; did you mean MSIGHT_PUBSUB_BACKEND?"
    ]


def test_rows_of_one_name_show_host_and_instance():
    text = shown(
        registry_of(
            info(instance="aaaa1111", host="edge-1", subscribe_topic="cam"),
            info(instance="bbbb2222", host="edge-2", subscribe_topic="cam"),
            info(instance="dddd4444", host="edge-2", subscribe_topic="cam", instance_id="worker-4"),
            info(name="alone", instance="cccc3333", host="edge-3", subscribe_topic="cam"),
        )
    )
    for part in ("edge-1", "aaaa1111", "edge-2", "bbbb2222", "worker-4"):
        assert part in text
    assert "edge-3" not in text
    assert "dddd4444" not in text


def test_a_topic_without_another_end_is_marked():
    text = shown(
        registry_of(
            info(name="source", publish_topic="site.frames"),
            info(name="detector", subscribe_topic="site.framse", publish_topic="boxes"),
            info(name="sink", subscribe_topic="boxes"),
        )
    )
    assert "-> site.frames (no node)" in text
    assert "<- site.framse (no node)" in text
    assert "-> boxes " in text
    assert "boxes (no node)" not in text


def test_a_pipeline_that_has_ended_is_not_marked():
    text = shown(
        registry_of(
            info(name="source", publish_topic="frames", status=NodeStatus.STOPPED, ended=True),
            info(name="sink", subscribe_topic="frames", status=NodeStatus.STOPPED, ended=True),
        )
    )
    assert "frames" in text
    assert "no node" not in text


def test_what_cannot_be_counted_is_a_question_mark():
    text = shown(registry_of(info(subscribe_topic="cam", metrics=NodeMetrics(missing=None, gaps=None))))
    (row,) = [line for line in text.splitlines() if "<- cam" in line]
    assert " ? " in row


def test_names_are_not_read_as_markup():
    assert "[red]x[/nonsense][7]" in shown(registry_of(program(name="[red]x[/nonsense]")))


def test_an_empty_table_says_what_to_wait_for():
    assert "No announcement received yet" in shown(registry_of())


async def test_watching_a_bus():
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    stop = asyncio.Event()
    node = Collect(NodeConfig(name="sink", subscribe_topic_name="in", heartbeat_update_interval=0.02))
    async with make_backend("memory").connect() as bus, asyncio.timeout(DEADLINE):
        watching = asyncio.create_task(watch(bus, 0.01, stop, console))
        async with running(bus, node):
            while "sink" not in console.file.getvalue():
                await asyncio.sleep(0.005)
        stop.set()
        await watching


def test_the_command(monkeypatch):
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKEND", "memory")
    result = CliRunner().invoke(app, ["top", "--seconds", "0.05", "--refresh", "0.1"])
    assert result.exit_code == 0
    assert "Nodes on memory (0)" in result.output


@pytest.mark.parametrize(("backend", "status"), [("carrier-pigeon", 2), ("nats", 3)])
def test_the_command_without_a_broker(monkeypatch, backend, status):
    monkeypatch.setenv("MSIGHT_NATS_SERVERS", "['nats://127.0.0.1:1']")
    result = CliRunner().invoke(app, ["top", "--backend", backend])
    assert result.exit_code == status
    assert "Traceback" not in result.output


def listed(text):
    return [line.split()[0] for line in text.splitlines() if line.startswith("n")]


FINE = NodeMetrics(messages_in=10)
LOSES = NodeMetrics(missing=1)


def test_the_worst_come_first():
    text = shown(
        registry_of(
            info(name="n-stopped", status=NodeStatus.STOPPED, ended=True),
            info(name="n-fine", metrics=FINE),
            info(name="n-starting", status=NodeStatus.REGISTERED),
            info(name="n-loses", metrics=LOSES),
            info(name="n-failed", status=NodeStatus.ERROR),
        )
    )
    assert listed(text)[1:] == ["n-failed", "n-loses", "n-starting", "n-fine", "n-stopped"]


@pytest.mark.parametrize("height", range(1, 60))
def test_what_does_not_fit_is_counted(height):
    infos = [info(name=f"n{number}", subscribe_topic="cam", publish_topic="out") for number in range(20)]
    lines = shown(registry_of(*infos), width=100, height=height).splitlines()
    shown_nodes = len(listed("\n".join(lines))) - 1
    more = [line for line in lines if line.startswith("…")]
    assert 1 <= shown_nodes <= 20
    assert more == ([] if shown_nodes == 20 else [f"… and {20 - shown_nodes} more"])
    assert len(lines) <= max(height, 8)  # title, heading, one node, the rest, the legend


def test_a_filter_shows_whom_it_concerns():
    registry = registry_of(
        info(name="n1", subscribe_topic="site.CAM_ne"), info(name="n2", host="cam-box"), info(name="n3", status="ERROR")
    )
    text = shown(registry, containing="cam")
    assert listed(text)[1:] == ["n1", "n2"]
    assert "Nodes (2 of 3)" in text
    assert listed(shown(registry, containing="error"))[1:] == ["n3"]
    assert "No node and no program contains 'truck'." in shown(registry, containing="truck")


@pytest.mark.parametrize("width", [60, 80])
def test_a_name_stays_whole_where_other_columns_can_go(width):
    metrics = NodeMetrics(rate_in=1234.4, rate_out=1234.4, queued=10_000, missing=123_456, dropped=12_345, errors=1_234)
    names = ("camera_north_east", "detector_north_east")
    nodes = [info(name=name, subscribe_topic="a.frame", publish_topic=f"{name}.out", metrics=metrics) for name in names]
    lines = shown(registry_of(*nodes), width=width).splitlines()
    assert max(map(len, lines)) <= width
    for name in names:
        assert any(f"{name} " in line for line in lines)
    if any("<-" in line for line in lines):
        assert sum("<- a.frame (no node) " in line for line in lines) == 2
        assert sum(".out (no node) " in line for line in lines) == 2


@pytest.mark.parametrize("width", [60, 80])
def test_before_a_heartbeat_the_hint_fits(width):
    lines = shown(registry_of(), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "every 10 s by default." in " ".join(lines)


@pytest.mark.parametrize("width", [60, 80])
def test_on_a_narrow_terminal_columns_are_left_out_and_named(width):
    metrics = NodeMetrics(rate_in=1234.4, queued=10_000, missing=123_456, dropped=12_345, latency_p50_ms=54321)
    name, topic = "a-rather-long-name-of-a-node", "intersection.huron-plymouth.objects_ne"
    lines = shown(registry_of(info(name=name, subscribe_topic=topic, metrics=metrics)), width=width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("1,234", "123,456", "RUNNING"):
        assert part in text
    assert (f"Not shown on {width} columns" in text) == ("heard" not in lines[2])
    *_, hidden = " ".join(lines).split("Not shown on")
    assert hidden.endswith("ms p50 p99, heard.")  # no name is cut
    assert "ms:" not in text  # the legend of a column that is not shown


def test_drawing_costs_as_much_as_fits_the_terminal(monkeypatch):
    drawn = []
    cells = NodeTable._cells
    monkeypatch.setattr(NodeTable, "_cells", lambda self, *rest: drawn.append(1) or cells(self, *rest))
    text = shown(registry_of(*(info(name=f"n{number:04}") for number in range(3000))), height=30)
    assert "… and 2,97" in text
    assert len(drawn) <= 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_cursor_comes_back_when_it_is_ended(nats, number):
    environment = {**os.environ, **nats.env, "MSIGHT_PUBSUB_BACKEND": "nats", "TERM": "xterm"}
    pid, terminal = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, "-m", "msight_bus", "top"], environment)
    said = b""
    while b"\x1b[?25l" not in said or b"Nodes on" not in said:
        said += os.read(terminal, 4096)
    os.kill(pid, number)
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:  # it has closed the terminal
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")
    assert b"Traceback" not in said
    assert os.waitstatus_to_exitcode(status) == 130


def test_a_node_with_several_inputs_has_a_line_for_each():
    metrics = NodeMetrics(rate_in=30, rate_out=7)
    text = shown(
        registry_of(
            info(
                name="fuse",
                inputs=("camera.*", "lidar", "radar"),
                more_inputs=2,
                publish_topic="tracks",
                metrics=metrics,
            ),
            info(name="ne", publish_topic="camera.ne"),
            info(name="lidar", publish_topic="lidar"),
        )
    )
    lines = [line.split() for line in text.splitlines() if "<-" in line or "->" in line or "more" in line]
    assert lines[0][:4] == ["fuse", "<-", "camera.*", "30.0"]
    assert [line[:4] for line in lines[1:4]] == [["<-", "lidar"], ["<-", "radar", "(no", "node)"], ["and", "2", "more"]]
    assert lines[4][:3] == ["->", "tracks", "7.0"]  # one of the two others can be this topic


def test_an_output_has_a_node_if_a_pattern_matches_it():
    outputs = registry_of(
        info(name="a", publish_topic="camera.ne"),
        info(name="b", publish_topic="radar"),
        info(name="sink", inputs=("camera.*",)),
        info(name="wrong", inputs=("a.>.b",)),
    )
    text = shown(outputs)
    assert "-> camera.ne (no node)" not in text
    assert "-> radar (no node)" in text
    assert "<- camera.* (no node)" not in text
    assert "<- a.>.b (no node)" in text
    assert "(1 of 4)" in shown(outputs, containing="camera.*")


def test_programs_are_listed_after_the_nodes_with_their_busiest_topics():
    sent = [ProgramTopic(topic=f"out{number}", published=True, rate_out=40.0 - number) for number in range(5)]
    received = [
        ProgramTopic(topic="boxes", subscribed=True, rate_in=7.5),
        ProgramTopic(topic="a.*", subscribed=True, rate_in=None),
    ]
    registry = registry_of(
        program(*received, *sent, more_topics=1),
        info(name="detector", subscribe_topic="out0", publish_topic="boxes"),
    )
    text = shown(registry, broker="nats://b")
    assert "Nodes on nats://b (1), programs (1)" in text
    rows = [line.split() for line in text.splitlines() if "<-" in line or "->" in line or "more" in line]
    assert rows[0][:3] == ["detector", "<-", "out0"]
    assert [row[:4] for row in rows[2:]] == [
        ["edge[7]", "<-", "boxes", "7.5"],
        ["<-", "a.*"],
        ["->", "out0", "40.0"],
        ["->", "out1", "39.0"],
        ["->", "out2", "38.0"],
        ["and", "3", "more"],
    ]
    assert "no node" not in text  # a topic that the program does not name can be the other end
    assert "Nodes (0 of 1), programs (1 of 1)" in shown(registry, containing="edge[7]")


def test_a_topic_without_a_node_at_its_other_end_can_have_a_program():
    registry = registry_of(
        info(name="detector", subscribe_topic="frames", publish_topic="boxes"),
        program(ProgramTopic(topic="frames", published=True), ProgramTopic(topic="typo", subscribed=True)),
    )
    text = shown(registry)
    assert "<- frames (no node)" not in text
    assert "-> frames (no node)" not in text
    assert "-> boxes (no node)" in text
    assert "<- typo (no node)" in text


def test_a_lost_program_comes_first():
    registry = registry_of(info(name="fine"), program())
    registry._programs.gone.add(("edge", "1"))
    lines = shown(registry).splitlines()
    assert lines[3].startswith("edge[7]")
    assert "LOST" in lines[3]


def test_on_kafka_the_topic_is_not_created_and_waited_for(kafka, topic, monkeypatch):
    name = f"_msight.{topic}"
    for module in ("registry", "cli.observing", "cli.top"):
        monkeypatch.setattr(f"msight_bus.{module}.NODES_TOPIC", name)
    result = command(kafka, "top", "--seconds", "0.2")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, f"Nodes on {kafka.settings().address} (0)")
    assert result.stderr.splitlines() == [
        f"Topic {name} does not exist on {kafka.settings().address}. The first node that starts creates it; waiting."
    ]

    async def appears():
        console = Console(file=io.StringIO(), width=160, force_terminal=True)
        stop = asyncio.Event()
        async with kafka.connect(**READING) as bus, kafka.connect() as other, asyncio.timeout(DEADLINE):
            assert name not in await topics_of(bus.settings)
            watching = asyncio.create_task(watch(bus, 0.01, stop, console))
            async with other.core.subscribe((name,)):
                while "edge[7]" not in console.file.getvalue():
                    await other.core.publish(name, msgspec.json.encode(program()))
                    await asyncio.sleep(0.05)
            stop.set()
            await watching

    asyncio.run(appears())
