"""The live table: what it shows of a registry, and the command."""

from __future__ import annotations

import asyncio
import io
import re
import time

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from msight_bus.cli import app
from msight_bus.cli.top import render, watch
from msight_bus.message import Message
from msight_bus.nodes import NodeConfig
from msight_bus.registry import NodeInfo, NodeMetrics, NodeStatus, Registry
from msight_bus.topics import NODES_TOPIC
from tests.support.brokers import make_backend
from tests.support.nodes import DEADLINE, Collect, running


def shown(registry, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(registry))
    return console.file.getvalue()


def registry_of(*infos):
    registry = Registry(None)
    for info in infos:
        registry._observe(Message(NODES_TOPIC, msgspec.json.encode(info)))
    return registry


def info(**fields):
    made = {"name": "detector", "instance": "1", "type": "T", "device": "d", "status": NodeStatus.RUNNING}
    return NodeInfo(**{**made, "started_at": 0.0, "heartbeat_interval": 10.0, **fields})


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
    first, second, third = [line for line in text.splitlines() if "<-" in line or "->" in line]
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
        info(subscribe_topic="demo.frames", publish_topic="intersection.objects_ne", metrics=metrics)
    )
    key, (seen, first, heard_at) = next(iter(registry._heard.items()))
    registry._heard[key] = (msgspec.structs.replace(seen, last_heartbeat=time.time()), first, heard_at)
    text = shown(registry, width=80)
    assert "…" not in text
    for part in ("detector", "1,234", "10,000", "12,345", "123,456", "1,506", "54,321", "RUNNING", "heard"):
        assert part in text
    assert re.search(r"RUNNING +\d+ s", text)


def test_rows_of_one_name_show_host_and_instance():
    text = shown(
        registry_of(
            info(instance="aaaa1111", host="edge-1", subscribe_topic="cam"),
            info(instance="bbbb2222", host="edge-2", subscribe_topic="cam"),
            info(name="alone", instance="cccc3333", host="edge-3", subscribe_topic="cam"),
        )
    )
    for part in ("edge-1", "aaaa1111", "edge-2", "bbbb2222"):
        assert part in text
    assert "edge-3" not in text


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
    registry = registry_of(info())
    key, (real, first, heard_at) = next(iter(registry._heard.items()))
    registry._heard[key] = (msgspec.structs.replace(real, name="[red]x[/nonsense]"), first, heard_at)
    assert "[red]x[/nonsense]" in shown(registry)


def test_an_empty_table_says_what_to_wait_for():
    assert "None heard of yet" in shown(registry_of())


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


@pytest.mark.parametrize("arguments", [["--backend", "carrier-pigeon"], ["--backend", "nats"]])
def test_the_command_without_a_broker(monkeypatch, arguments):
    monkeypatch.setenv("MSIGHT_NATS_SERVERS", "['nats://127.0.0.1:1']")
    result = CliRunner().invoke(app, ["top", *arguments])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
