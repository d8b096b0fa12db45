"""The periodic check that messages published at a Redis server reach the other servers. On scripted peers."""

from __future__ import annotations

import asyncio

from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import Backend, backend_at
from tests.support.listeners import fake
from tests.support.rig import seen, until
from tests.support.scripted_peers import ScriptedPeer
from tests.support.servers import variables

QUICK = {"MSIGHT_PING_INTERVAL": "0.05", "MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_CONNECT_TIMEOUT": "2"}
REPLICA = b"*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:0\r\n"
DENIED = b"-NOPERM User alice has no permissions to run this command\r\n"
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


async def test_both_connections_leave_a_demoted_server_and_return_when_it_is_a_master_again():
    demoted = False
    events: list = []
    peer = ScriptedPeer("redis", lambda command: REPLICA if command.verb == "ROLE" and demoted else None)
    async with fake(peer) as way:
        async with Backend("redis", variables("redis", way.port)).connect(events=events, **QUICK) as bus:
            async with bus.subscribe("a"):
                demoted = True
                await until(lambda: seen(events, Disconnected))
                assert "replica of 10.0.0.1:6379" in seen(events, Disconnected)[0].reason
                demoted = False
                await until(lambda: seen(events, Reconnected) and len(peer.subscriptions) == 2)
                await bus.publish("a", b"x")


async def test_messages_published_beside_a_health_check_are_confirmed():
    peer = ScriptedPeer("redis")
    async with fake(peer) as way:
        async with Backend("redis", variables("redis", way.port)).connect(
            **QUICK | {"MSIGHT_PING_INTERVAL": "0.001"}
        ) as bus:
            async with bus.publisher("a") as publisher:
                asked = len(peer.told("ROLE"))
                async with asyncio.timeout(10):
                    while len(peer.told("ROLE")) < asked + 20:
                        await publisher.send(b"x")
                        await asyncio.sleep(0)
        assert way.connections == 1


async def test_a_user_without_permission_stops_the_health_checks():
    """Each refused command adds an entry to the server's ACL LOG."""
    peer = ScriptedPeer("redis", lambda command: DENIED if command.verb in ("ROLE", "INFO", "CLUSTER") else None)
    async with fake(peer) as way:
        async with Backend("redis", variables("redis", way.port)).connect(**QUICK) as bus:
            await until(lambda: len(peer.told("PING")) >= 5)
            await bus.publish("a", b"x")
    assert len(peer.told("ROLE")) == 2  # when connecting, and once beside the PING


async def test_subscribing_connections_follow_the_publishing_connection():
    """A subscribing connection does not check the health of its node."""
    left: list[ScriptedPeer] = []

    def peer_of_two():
        peer = ScriptedPeer("redis", lambda command: LOADING if command.verb == "AUTH" and peer in left else None)
        return peer

    peers = [peer_of_two(), peer_of_two()]
    async with fake(peers[0]) as one, fake(peers[1]) as other:
        async with backend_at("redis", one.port, other.port).connect(**QUICK) as bus, bus.subscribe("a"):
            (here,) = [peer for peer in peers if peer.subscriptions]
            (there,) = [peer for peer in peers if peer is not here]
            left.append(here)
            here.writers[0].transport.abort()  # the connection that publishes
            await until(lambda: there.subscriptions)
            await bus.publish("a", b"x")
            await until(lambda: b"x" in b"".join(word for command in there.told("PUBLISH") for word in command.words))
