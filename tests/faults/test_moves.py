"""The bus leaves a server that changes its role or shuts down, and returns; a ledger accounts for every message."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import redis

from msight_bus.events import Disconnected, Reconnected
from tests.support.clusters import known_to, nats_cluster, redis_cluster
from tests.support.ledger import Account
from tests.support.rig import QUICKLY, own_broker, seen, until, whole
from tests.support.stream import Events, traffic

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
QUICK = QUICKLY | {"MSIGHT_PONG_TIMEOUT": "1", "MSIGHT_CONNECT_TIMEOUT": "3", "MSIGHT_PUBLISH_TIMEOUT": "1"}


def ports_of(bus):
    """The ports of the servers that a bus is connected to."""
    connections = (bus.core.backend._publishing, bus.core.backend._subscribing)
    return {each.connection.transport.get_extra_info("peername")[1] for each in connections if each.connection}


async def test_a_primary_becomes_a_replica_and_a_primary_again(book):
    """As in a mistaken failover: each time, both buses leave the replica and return to the primary."""
    events = Events(book.ledgers)
    with own_broker("redis") as (primary, _), own_broker("redis") as (broker, backend):
        with redis.Redis(port=broker.port) as client:
            async with backend.connect(events=events, **QUICK) as receiving, backend.connect(**QUICK) as sending:
                async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                    for number in range(1, 4):
                        client.replicaof(primary.host, primary.port)
                        await until(lambda number=number: len(seen(events, Disconnected)) >= number)
                        await asyncio.sleep(0.5)  # some tries, each of which sees a replica
                        assert not ports_of(receiving)
                        client.replicaof("NO", "ONE")
                        book.recovered.append(await flow.flows())
                        await until(lambda: len(seen(events, Reconnected)) == len(seen(events, Disconnected)))
    assert whole(book.account())


async def test_nodes_are_removed_from_a_redis_cluster_while_messages_flow(book):
    """``CLUSTER FORGET`` at the other nodes and ``CLUSTER RESET`` at the node, as in ``--cluster del-node``."""
    events = Events(book.ledgers)
    with redis_cluster() as cluster:
        async with cluster.connect(events=events, **QUICK) as receiving, cluster.connect(**QUICK) as sending:
            async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                (port,) = ports_of(receiving)
                take_out(cluster, port)
                await until(lambda: seen(events, Reconnected))
                assert port not in ports_of(receiving)
                book.recovered.append(await flow.flows())
                assert port not in ports_of(sending)
    assert whole(book.account())


def take_out(cluster, port):
    with redis.Redis(port=port) as leaving:
        name = leaving.execute_command("CLUSTER", "MYID")
        for node in cluster.nodes:
            if node.port != port:
                with redis.Redis(port=node.port) as neighbour:
                    neighbour.execute_command("CLUSTER", "FORGET", name)
        leaving.execute_command("CLUSTER", "RESET", "SOFT")


async def test_a_rolling_restart_of_nats_loses_no_message(book):
    """Each server enters lame duck mode, ends and restarts before the next one: an upgrade of a cluster."""
    events = Events(book.ledgers)
    lines = ['lame_duck_grace_period: "3s"', 'lame_duck_duration: "30s"']
    with nats_cluster(*lines) as cluster:
        async with cluster.connect(events=events, **QUICKLY) as receiving, cluster.connect(**QUICKLY) as sending:
            async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.002) as flow:
                for node in cluster.nodes:
                    os.kill(node.pid, signal.SIGUSR2)
                    await until(lambda node=node: not node.is_alive, within=60)
                    assert node.port not in ports_of(receiving) | ports_of(sending)
                    await asyncio.to_thread(node.restart)
                    await until(lambda: all(len(known_to(each.port)) == len(cluster.nodes) for each in cluster.nodes))
                    book.recovered.append(await flow.flows())
    assert not seen(events, Disconnected)
    account = book.account()
    assert account == Account(acknowledged=account.acknowledged, delivered=account.acknowledged)
