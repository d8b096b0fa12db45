"""SIGTERM under load and during outages, on real brokers: the process ends by its deadline and logs what was left."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.support.brokers import breakable_broker, make_backend
from tests.support.programs import environment, program, ready
from tests.support.rig import frozen, own_broker

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


def running(tmp_path, backend, how, topic, *, code=PROGRAM, **settings):
    """The program, once it has taken some messages."""
    env = environment(**backend.env, **settings)
    return ready(program(tmp_path, code), how, topic, env=env)


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
    with running(tmp_path, make_backend(kind), "flooded", topic) as process:
        last = ended(process)
    left = re.search(r"DrainTimeoutError: Not drained within 1 s .*left: .*?(\d+) messages? at node sink", last)
    assert left is not None, last
    assert int(left[1]) > 1


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_while_a_handler_hangs(tmp_path, topic, kind):
    with running(tmp_path, make_backend(kind), "hanging", topic) as process:
        last = ended(process)
    assert re.search(r"DrainTimeoutError: Not drained within 1 s .*left: .*messages? at node sink", last), last


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_while_the_broker_is_down(tmp_path, kind):
    with own_broker(kind) as (broker, backend):
        with running(tmp_path, backend, "dead", "a") as process:
            broker.kill()
            assert process.stdout.readline() == "stuck\n"
            last = ended(process)
    assert re.search(r"DrainTimeoutError: Not drained within 1 s .*left: .*[1-9]\d* messages? at node source", last), (
        last
    )


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_while_the_broker_is_frozen_no_other_deadline_counts(tmp_path, kind, topic):
    broker = breakable_broker(kind)
    with running(tmp_path, make_backend(kind, broker), "frozen", topic, code=PIPELINE, **LONG) as process:
        with frozen(broker):
            time.sleep(1)  # for something to be in flight
            last = ended(process)
    assert "DrainTimeoutError: Not drained within 1 s" in last, last


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_after_a_second_signal_no_deadline_of_a_frozen_broker_counts(tmp_path, kind, topic):
    broker = breakable_broker(kind)
    settings = LONG | {"MSIGHT_DRAIN_TIMEOUT": "600"}
    with running(tmp_path, make_backend(kind, broker), "frozen", topic, code=PIPELINE, **settings) as process:
        with frozen(broker):
            process.send_signal(signal.SIGTERM)
            for line in process.stderr:
                if "another signal stops at once" in line:
                    break
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=50)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said, said
