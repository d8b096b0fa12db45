"""SIGTERM at the worst moment, on real brokers: the process ends by its deadline and says last what it left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.brokers import make_backend
from tests.support.rig import own_broker

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, sys
from msight_bus import QueuePolicy
from msight_bus.nodes import NodeConfig, SinkNode, SourceNode, run_nodes

how, topic = sys.argv[1:]

class Source(SourceNode):
    given = 0

    async def on_start(self):
        self.watching = asyncio.create_task(self.watch())

    async def watch(self):
        seen = -1
        while self.given != seen and self.left < 100:
            seen = self.given
            await asyncio.sleep(0.5)
        print("stuck", flush=True)

    async def get_data(self):
        if how == "dead":
            await asyncio.sleep(0.001)
        self.given += 1
        return b"%d" % self.given

class Sink(SinkNode):
    taken = 0
    async def on_message(self, data):
        self.taken += 1
        if self.taken == 20:
            print("ready", flush=True)
            if how == "hanging":
                await asyncio.Event().wait()
        if how == "flooded":
            await asyncio.sleep(0.05)

source = Source(NodeConfig(name="source", publish_topic_name=topic))
sink = Sink(NodeConfig(name="sink", subscribe_topic_name=topic))
run_nodes(sink, source)
"""

PIPELINE = """
import asyncio, sys
from msight_bus.nodes import NodeConfig, ProcessingNode, SinkNode, SourceNode, run_nodes

class Source(SourceNode):
    given = 0
    async def get_data(self):
        await asyncio.sleep(0.001)
        self.given += 1
        return b"%d" % self.given

class Echo(ProcessingNode):
    async def process(self, data):
        return data

class Sink(SinkNode):
    taken = 0
    async def on_message(self, data):
        self.taken += 1
        if self.taken == 20:
            print("ready", flush=True)

topic = sys.argv[2]
run_nodes(
    Source(NodeConfig(name="source", publish_topic_name=topic)),
    Echo(NodeConfig(name="echo", subscribe_topic_name=topic, publish_topic_name=topic + ".out", concurrency=8)),
    Sink(NodeConfig(name="sink", subscribe_topic_name=topic + ".out")),
)
"""

LONG = {f"MSIGHT_{name}_TIMEOUT": "600" for name in ("CONNECT", "PUBLISH", "PONG")} | {"MSIGHT_PING_INTERVAL": "600"}


@contextmanager
def program(tmp_path, backend, how, topic, *, code=PROGRAM, variables=()):
    """The program, once it has taken some messages."""
    script = tmp_path / "program.py"
    script.write_text(code)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "MSIGHT_PUBSUB_BACKEND": backend.name,
        "MSIGHT_DRAIN_TIMEOUT": "1",
        **backend.env,
        **dict(variables),
    }
    command = [sys.executable, "-W", "default", str(script), how, topic]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def ended(process):
    """What it said last, on SIGTERM."""
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 1, said
    assert "Warning:" not in said, said
    assert "Exception in callback" not in said, said
    return said.splitlines()[-1]


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_while_flooded(tmp_path, topic, kind):
    with program(tmp_path, make_backend(kind), "flooded", topic) as process:
        last = ended(process)
    left = re.search(r"DrainTimeoutError: Not drained within 1 s .*left: .*?(\d+) messages at node sink", last)
    assert left is not None, last
    assert int(left[1]) > 1


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_while_a_handler_hangs(tmp_path, topic, kind):
    with program(tmp_path, make_backend(kind), "hanging", topic) as process:
        last = ended(process)
    assert re.search(r"DrainTimeoutError: Not drained within 1 s .*left: .*messages at node sink", last), last


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_while_the_broker_is_dead(tmp_path, kind):
    with own_broker(kind) as (broker, backend):
        with program(tmp_path, backend, "dead", "a") as process:
            broker.kill()
            assert process.stdout.readline() == "stuck\n"
            last = ended(process)
    assert re.search(r"DrainTimeoutError: Not drained within 1 s .*left: .*[1-9]\d* messages at node source", last), (
        last
    )


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_while_the_broker_is_frozen_no_other_deadline_counts(tmp_path, kind):
    with own_broker(kind) as (broker, backend):
        with program(tmp_path, backend, "frozen", "a", code=PIPELINE, variables=LONG) as process:
            broker.freeze()
            try:
                time.sleep(1)  # for something to be in flight
                last = ended(process)
            finally:
                broker.thaw()
    assert "DrainTimeoutError: Not drained within 1 s" in last, last


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_a_second_signal_waits_for_no_deadline_of_a_frozen_broker(tmp_path, kind):
    with own_broker(kind) as (broker, backend):
        variables = LONG | {"MSIGHT_DRAIN_TIMEOUT": "600"}
        with program(tmp_path, backend, "frozen", "a", code=PIPELINE, variables=variables) as process:
            broker.freeze()
            try:
                process.send_signal(signal.SIGTERM)
                for line in process.stderr:
                    if "another signal stops at once" in line:
                        break
                process.send_signal(signal.SIGTERM)
                _, said = process.communicate(timeout=50)
            finally:
                broker.thaw()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said, said
