"""The bus does not use a Redis server that does not reach the others: a replica, a node outside its cluster, a failed cluster."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, contextmanager

import pytest
import redis

from msight_bus import BusError, ConnectionLostError, PublishTimeoutError, brokers, connect
from msight_bus.events import Disconnected, Reconnected
from msight_bus.settings import BusSettings
from tests.support.brokers import make_backend, start_broker
from tests.support.clusters import redis_cluster
from tests.support.listeners import proxy
from tests.support.receiving import take
from tests.support.rig import seen, until
from tests.support.waiting import wait_until

PREFIX = "MSIGHT_REDIS_MESSAGE_BROKER_"
QUICK = {
    "MSIGHT_RECONNECT_MAX": "0.2",
    "MSIGHT_PING_INTERVAL": "0.2",
    "MSIGHT_PONG_TIMEOUT": "1",
    "MSIGHT_CONNECT_TIMEOUT": "3",
    "MSIGHT_PUBLISH_TIMEOUT": "1",
}


@contextmanager
def client_of(broker):
    with redis.Redis(host=broker.host, port=broker.port, decode_responses=True) as client:
        yield client


AT_ONCE = ["repl-diskless-sync-delay 0"]
"""A master waits 5 s for further replicas by default."""


@pytest.fixture
def master():
    with start_broker("redis", AT_ONCE) as broker:
        yield broker


@pytest.fixture
def replica(master):
    """A server that follows the master."""
    with start_broker("redis") as broker, client_of(broker) as client:
        follow(client, master)
        yield broker


def follow(client, master):
    client.replicaof(master.host, master.port)
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")


def in_cluster(*nodes):
    """The backend that is told that these are the nodes of a cluster."""
    addresses = ",".join(f"{node.host}:{node.port}" for node in nodes)
    backend = make_backend("redis", nodes[0])
    backend.env.clear()
    backend.env.update({f"{PREFIX}USE_CLUSTER": "true", f"{PREFIX}CLUSTER_NODES": addresses})
    return backend


def told_of_replica(master):
    return rf"(?i)replica.*{re.escape(master.host)}:{master.port}"


async def test_a_replica_is_refused_by_its_role_and_its_master(master, replica):
    with pytest.raises(ConnectionLostError, match=told_of_replica(master)):
        async with make_backend("redis", replica).connect(**QUICK):
            pass


@pytest.mark.faults
async def test_the_bus_leaves_a_master_that_becomes_a_replica(master):
    """On both connections: a bus that only publishes checks its server, too."""
    with start_broker("redis") as other, client_of(other) as client:
        backend = make_backend("redis", other)
        listening: list = []
        publishing: list = []
        async with backend.connect(events=listening, **QUICK) as bus, bus.subscribe("a"):
            async with backend.connect(events=publishing, **QUICK) as sender:
                await sender.publish("a", b"x")
                await asyncio.to_thread(follow, client, master)
                for events in (listening, publishing):
                    await until(lambda events=events: seen(events, Disconnected), within=10)
                    assert re.search(told_of_replica(master), seen(events, Disconnected)[0].reason)
                with pytest.raises(PublishTimeoutError):
                    await sender.publish("a", b"nowhere")
                client.replicaof("NO", "ONE")
                for events in (listening, publishing):
                    await until(lambda events=events: seen(events, Reconnected))


@pytest.mark.faults
async def test_a_busy_publisher_detects_a_demotion(master):
    """A connection that is never idle is checked, too."""
    with start_broker("redis") as other, client_of(other) as client:
        events: list = []
        async with make_backend("redis", other).connect(events=events, **QUICK) as bus:
            await bus.publish("a", b"x")
            await asyncio.to_thread(follow, client, master)
            with pytest.raises(BusError):
                async with asyncio.timeout(10):
                    while not seen(events, Disconnected):
                        await bus.publish("a", b"x")
                        await asyncio.sleep(0.01)
                    await bus.publish("a", b"nowhere")


@pytest.mark.faults
async def test_after_a_failover_the_bus_resolves_the_name_to_the_new_master(master, replica):
    events: list = []
    async with proxy(master.port) as name:
        backend = make_backend("redis", master)
        backend.env[f"{PREFIX}PORT"] = str(name.port)
        async with backend.connect(events=events, **QUICK) as bus, bus.subscribe("a") as messages:
            with client_of(master) as client:
                client.execute_command("FAILOVER")
                while client.role()[0] != "slave":
                    await asyncio.sleep(0.01)
            await until(lambda: seen(events, Disconnected), within=10)
            name.target = replica.port
            await until(lambda: seen(events, Reconnected))
            async with make_backend("redis", replica).connect() as there:
                await there.publish("a", b"at the new master")
            assert (await take(messages, 1))[0].payload == b"at the new master"


async def test_standalone_servers_are_refused_as_a_cluster(master):
    with start_broker("redis") as other:
        with pytest.raises(ConnectionLostError, match="(?i)cluster"):
            async with in_cluster(master, other).connect(**QUICK):
                pass


async def test_a_user_without_permission_for_the_health_check_is_connected():
    rights = "resetchannels &* -@all +publish +subscribe +unsubscribe +ping +select"
    with start_broker("redis", [f"user alice on >secret {rights}"]) as broker:
        backend = make_backend("redis", broker)
        async with backend.connect(**QUICK, **{f"{PREFIX}USERNAME": "alice", f"{PREFIX}PASSWORD": "secret"}) as bus:
            async with bus.subscribe("a") as messages:
                await bus.publish("a", b"x")
                assert (await take(messages, 1))[0].payload == b"x"


# -- clusters


def serves_a_subscriber(node):
    with client_of(node) as client:
        return any(int(one["sub"]) for one in client.client_list())


def state_of(node):
    with client_of(node) as client:
        return client.execute_command("CLUSTER", "INFO")


@pytest.fixture
def cluster():
    with redis_cluster() as running:
        yield running


async def test_a_standalone_server_among_the_nodes_is_skipped(cluster, master):
    listening = in_cluster(master, *cluster.nodes)
    async with cluster.connect() as bus, bus.subscribe("a") as messages:
        for number in range(6):
            async with listening.connect(**QUICK) as publishing, publishing.publisher("a") as publisher:
                await publisher.send(b"%d" % number)
        received = sorted(int(message.payload) for message in await take(messages, 6, within=5))
        assert received == list(range(6))  # order holds per publisher; these publish at different nodes


@pytest.mark.faults
async def test_the_bus_leaves_a_node_that_was_removed_from_the_cluster(cluster):
    """With the commands of ``redis-cli --cluster del-node``."""
    events: list = []
    async with cluster.connect(events=events, **QUICK) as bus, bus.subscribe("a") as messages:
        (node,) = [node for node in cluster.nodes if serves_a_subscriber(node)]
        others = [other for other in cluster.nodes if other is not node]
        with client_of(node) as client:
            name = client.execute_command("CLUSTER", "MYID")
            for other in others:
                with client_of(other) as neighbour:
                    neighbour.execute_command("CLUSTER", "FORGET", name)
            client.execute_command("CLUSTER", "RESET", "SOFT")
        await until(lambda: seen(events, Reconnected), within=10)
        assert seen(events, Disconnected)
        assert not serves_a_subscriber(node)
        async with make_backend("redis", others[0]).connect() as there:
            await there.publish("a", b"in the cluster")
        assert (await take(messages, 1))[0].payload == b"in the cluster"


@pytest.mark.faults
async def test_the_bus_leaves_a_failed_cluster_until_it_recovers(cluster):
    events: list = []
    async with cluster.connect(events=events, **QUICK) as bus, bus.subscribe("a") as messages:
        (node,) = [node for node in cluster.nodes if serves_a_subscriber(node)]
        others = [other for other in cluster.nodes if other is not node]
        for other in others:
            await asyncio.to_thread(other.kill)
        await until(lambda: seen(events, Disconnected), within=10)
        assert "cluster_state:fail" in state_of(node)
        with pytest.raises(ConnectionLostError, match="cluster_state"):
            async with in_cluster(node).connect(**QUICK):
                pass
        for other in others:
            await asyncio.to_thread(other.restart)
        await until(lambda: seen(events, Reconnected))
        await bus.publish("a", b"well again")
        assert (await take(messages, 1))[0].payload == b"well again"


async def test_a_replica_inside_a_cluster_is_used_like_a_master(cluster):
    first, _, last = cluster.nodes
    with client_of(first) as master, client_of(last) as replica:
        name = master.execute_command("CLUSTER", "MYID")
        replica.execute_command("CLUSTER", "FLUSHSLOTS")
        replica.execute_command("CLUSTER", "REPLICATE", name)
        await until(lambda: replica.role()[0] == "slave" and "cluster_state:ok" in state_of(last))
    async with in_cluster(last).connect(**QUICK) as bus, in_cluster(first).connect(**QUICK) as other:
        async with other.subscribe("a") as messages:
            await bus.publish("a", b"x")
            assert (await take(messages, 1))[0].payload == b"x"


# -- which node


async def test_buses_spread_over_the_nodes(cluster):
    def clients(node):
        with client_of(node) as client:
            return len(client.client_list())

    before = [clients(node) for node in cluster.nodes]
    async with AsyncExitStack() as stack:
        for _ in range(30):
            await stack.enter_async_context(cluster.connect())
        added = [clients(node) - count for node, count in zip(cluster.nodes, before, strict=True)]
    assert all(count >= 1 for count in added), added


# -- Sentinel


async def test_a_sentinel_is_refused():
    with brokers.start("redis", arguments=["--sentinel"]) as sentinel:
        with pytest.raises(ConnectionLostError, match="Sentinel"):
            async with make_backend("redis", sentinel).connect(**QUICK):
                pass


@pytest.mark.parametrize("named", [True, False], ids=["as a cluster", "as one server"])
async def test_subscribers_at_another_node_are_never_reported_lost(named):
    """Each node knows the number of its own subscribers only."""
    with redis_cluster() as cluster:
        env = dict(cluster.env) if named else {}
        there = [{f"{PREFIX}HOST": node.host, f"{PREFIX}PORT": f"{node.port}"} for node in cluster.nodes]
        buses = [BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "redis", **env, **place}) for place in there]
        async with AsyncExitStack() as stack:
            first, *others = [await stack.enter_async_context(connect(settings)) for settings in buses]
            for bus in (first, *others):
                await stack.enter_async_context(bus.subscribe(f"at.{id(bus)}"))
            assert [await first.core.has_subscribers(f"at.{id(bus)}") for bus in others] == [None, None]
