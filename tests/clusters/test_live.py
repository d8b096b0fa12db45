"""Redis Cluster and a NATS cluster: the bus fails over when the node that it is connected to is killed or hangs."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus.events import Disconnected, Gap, Reconnected
from tests.support.brokers import Backend
from tests.support.clusters import nats_cluster, redis_cluster
from tests.support.receiving import take
from tests.support.rig import seen, until

CLUSTERS = {"redis": redis_cluster, "nats": nats_cluster}
QUICK = {
    "MSIGHT_RECONNECT_MAX": "0.2",
    "MSIGHT_PING_INTERVAL": "0.2",
    "MSIGHT_PONG_TIMEOUT": "0.3",
    "MSIGHT_CONNECT_TIMEOUT": "3",
}


@pytest.fixture(params=CLUSTERS)
def cluster(request):
    with CLUSTERS[request.param]() as running:
        yield running


def ports_of(bus):
    """The ports of the nodes that a bus is connected to."""
    connections = (bus.core.backend._publishing, bus.core.backend._subscribing)
    return {each.connection.transport.get_extra_info("peername")[1] for each in connections if each.connection}


async def test_messages_flow_after_each_node_is_killed_in_turn(cluster):
    events: list = []
    async with cluster.connect(events=events, **QUICK) as bus, bus.subscribe("a") as messages:
        for _ in cluster.nodes:
            events.clear()
            (port,) = ports_of(bus)
            node = cluster.node(port)
            await asyncio.to_thread(node.kill)
            await until(lambda: seen(events, Reconnected))
            assert seen(events, Disconnected)
            assert Gap("a", None, "reconnect") in events
            assert port not in ports_of(bus)
            await bus.publish("a", b"after")
            assert (await take(messages, 1))[0].payload == b"after"
            await asyncio.to_thread(node.restart)


async def test_the_bus_fails_over_from_a_node_that_hangs(cluster):
    events: list = []
    async with cluster.connect(events=events, **QUICK) as bus, bus.subscribe("a") as messages:
        (port,) = ports_of(bus)
        cluster.node(port).freeze()
        await until(lambda: seen(events, Reconnected))
        assert port not in ports_of(bus)
        await bus.publish("a", b"after")
        assert (await take(messages, 1))[0].payload == b"after"


async def test_a_bus_connects_while_a_node_hangs(cluster, monkeypatch):
    monkeypatch.setattr("random.shuffle", lambda servers: None)  # the first one is tried first
    cluster.nodes[0].freeze()
    async with cluster.connect(**QUICK) as bus, bus.subscribe("a") as messages:
        await bus.publish("a", b"x")
        assert (await take(messages, 1))[0].payload == b"x"


async def test_a_publisher_at_another_node_is_not_affected(cluster):
    """Its messages reach the subscriber again once the subscriber has failed over."""
    events: list = []
    arrived = asyncio.Event()
    async with cluster.connect(**QUICK) as bus, bus.subscribe("a") as messages:
        (port,) = ports_of(bus)
        other = next(node for node in cluster.nodes if node.port != port)
        async with Backend(cluster.name, dict(other.env)).connect(events=events, **QUICK) as publishing:

            async def publish():
                while not arrived.is_set():
                    await publishing.publish("a", b"x")
                    await asyncio.sleep(0.01)

            await asyncio.to_thread(cluster.node(port).kill)
            publishes = asyncio.create_task(publish())
            await take(messages, 1)
            arrived.set()
            await publishes
    assert not events


async def test_no_message_is_missing_across_nodes_after_the_first(cluster):
    """Another NATS server learns of a subscription after it was confirmed, so the first message need not have sequence 1."""
    here, there = (Backend(cluster.name, dict(node.env)) for node in cluster.nodes[:2])
    async with here.connect() as bus, there.connect() as publishing, bus.subscribe("a") as messages:

        async def publish():
            async with publishing.publisher("a") as publisher:
                while True:
                    await publisher.send(b"x")

        publishes = asyncio.create_task(publish())
        sequences = [message.sequence for message in await take(messages, 500)]
        publishes.cancel()
        await asyncio.wait((publishes,))
        assert sequences == list(range(sequences[0], sequences[0] + 500))
        assert messages.stats.missing == 0
