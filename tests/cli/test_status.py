"""``status``: the broker, the nodes and their totals."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from msight_bus.nodes import NodeConfig
from msight_bus.registry import NodeInfo, NodeMetrics, NodeStatus
from msight_bus.topics import NODES_TOPIC
from tests.support.brokers import make_backend, make_backend_alone
from tests.support.commands import command, in_a_thread
from tests.support.nodes import Collect, running
from tests.support.servers import start


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_the_broker_and_its_nodes(kind, topic):
    backend = make_backend_alone(kind)

    async def work(bus, ready, stop):
        config = NodeConfig(name="sink", subscribe_topic_name=topic, heartbeat_update_interval=0.2)
        async with running(bus, Collect(config)):
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    with in_a_thread(backend, work):
        result = command(backend, "status", "--seconds", "1", "--json")
    fields = json.loads(result.stdout)
    assert (fields["backend"], fields["address"]) == (kind, backend.settings().address)
    assert (fields["version"] is None) == (kind == "kafka")
    assert fields["ping_ms"] > 0
    assert fields["nodes"]["RUNNING"] >= 1
    assert result.exit_code == bool(fields["faults"])


def test_totals_and_a_node_with_an_error():
    metrics = NodeMetrics(missing=1, dropped=20, errors=300, undecodable=4000, queued=5)
    common = {"device": "", "type": "T", "started_at": 0.0, "heartbeat_interval": 5.0, "metrics": metrics}
    well = NodeInfo(name="well", instance="a", status=NodeStatus.RUNNING, **common)
    ill = NodeInfo(name="ill", instance="b", host="far", status=NodeStatus.ERROR, **common)

    async def announce(bus, ready, stop):
        ready()
        while not stop.is_set():
            for info in nodes:
                await bus.core.publish(NODES_TOPIC, msgspec.json.encode(info))
            await asyncio.sleep(0.05)

    with start("nats") as broker:
        backend = make_backend("nats", broker)
        nodes = [well]
        with in_a_thread(backend, announce):
            assert command(backend, "status", "--seconds", "0.5").exit_code == 0
        nodes.append(ill)
        with in_a_thread(backend, announce):
            result = command(backend, "status", "--seconds", "0.5")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1:] == [
        "Nodes: 1 ERROR, 1 RUNNING",
        "Since their start: 2 messages lost, 40 dropped, 8,600 errors; queued now: 10",
        "The node ill on far is ERROR.",
    ]


def test_no_broker(nats):
    assert command(nats, "status", MSIGHT_NATS_SERVERS="nats://127.0.0.1:1").exit_code == 3
    assert command(nats, "status", "--seconds", "0").exit_code == 2
