"""A broker that disconnects, authenticates slowly, is full or busy is retried; a ledger accounts for every message."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager

import pytest
import redis

import msight_bus
from msight_bus import AuthenticationError, ConnectionLostError
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import Backend
from tests.support.clusters import nats_cluster, redis_cluster
from tests.support.proxy import FaultProxy, through
from tests.support.reloading import NatsServer
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until, whole
from tests.support.stream import Events, traffic

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
live = pytest.mark.parametrize("kind", LIVE)

USER, PASSWORD = "alice", "let me in"
DOORS = {
    "redis": [f'user {USER} on ">{PASSWORD}" ~* &* +@all'],
    "nats": [f'authorization {{ user: {USER}, password: "{PASSWORD}", timeout: 20 }}'],
}


def with_credentials(backend: Backend) -> Backend:
    prefix = {"redis": "MSIGHT_REDIS_MESSAGE_BROKER_", "nats": "MSIGHT_NATS_"}[backend.name]
    return Backend(backend.name, {**backend.env, f"{prefix}USERNAME": USER, f"{prefix}PASSWORD": PASSWORD})


@asynccontextmanager
async def streaming(kind, book, *, config=(), **variables):
    """Traffic through a proxy to a broker of the test's own, which lets alice in."""
    events = Events(book.ledgers)
    with own_broker(kind, config) as (broker, backend):
        async with FaultProxy(broker.port, seed=1) as proxy:
            behind = through(proxy, with_credentials(backend) if config else backend)
            how = QUICKLY | variables
            async with behind.connect(events=events, **how) as receiving, behind.connect(**how) as sending:
                async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                    yield broker, proxy, flow, events, receiving


def is_back(events):
    return len(seen(events, Reconnected)) == len(seen(events, Disconnected)) > 0


@live
async def test_a_peer_that_disconnects_after_each_handshake_is_retried_with_backoff(kind, book):
    async with streaming(kind, book) as (_, proxy, flow, events, _):
        accepted, began = proxy.accepted, time.monotonic()
        while time.monotonic() < began + 5:
            await until(lambda: proxy.connections)
            await asyncio.sleep(0.02)  # most handshakes are over by then
            await proxy.reset()
        tries, took = proxy.accepted - accepted, time.monotonic() - began
        book.recovered.append(await flow.flows())
        await until(lambda: is_back(events))
    pauses = took / (0.5 * float(QUICKLY["MSIGHT_RECONNECT_MAX"]))  # the shortest, once they have grown
    owners = 4 if kind == "redis" else 2
    assert tries <= owners * (pauses + 5)
    assert whole(book.account())


@live
async def test_an_authentication_of_5_seconds_is_waited_for(kind, book):
    async with streaming(kind, book, config=DOORS[kind]) as (_, proxy, flow, events, _):
        proxy.conditions.login = 5
        await proxy.reset()
        book.recovered.append(await flow.flows(within=40))
        await until(lambda: is_back(events))
        assert len(seen(events, Disconnected)) <= 2  # the first try was the last
        proxy.conditions.login = 0
    assert whole(book.account())


async def test_an_authentication_timeout_of_nats_is_retried(book):
    """The server allows 2 s by default, then sends "Authentication Timeout"."""
    config = [f'authorization {{ user: {USER}, password: "{PASSWORD}" }}']
    async with streaming("nats", book, config=config) as (_, proxy, flow, events, _):
        proxy.conditions.login = 5
        await proxy.reset()
        tries = proxy.accepted
        await until(lambda: proxy.accepted >= tries + 4, within=60)
        backend = with_credentials(Backend("nats", {"MSIGHT_NATS_SERVERS": f"nats://127.0.0.1:{proxy.port}"}))
        with pytest.raises(ConnectionLostError):
            async with backend.connect():
                pass
        proxy.conditions.login = 0
        book.recovered.append(await flow.flows(within=30))
        await until(lambda: is_back(events))
    assert whole(book.account())


@live
async def test_a_full_server_is_retried_until_it_accepts(kind, book):
    """Redis ``maxclients``, NATS ``max_connections``: other clients connected after a disconnect of the bus."""
    most = 12
    config = {"redis": [f"maxclients {most}"], "nats": [f"max_connections: {most}"]}[kind]
    with own_broker(kind, config) as (broker, backend):
        events = Events(book.ledgers)
        async with FaultProxy(broker.port) as proxy, contextlib.AsyncExitStack() as stack:
            behind = through(proxy, backend)
            async with behind.connect(events=events, **QUICKLY) as receiving, behind.connect(**QUICKLY) as sending:
                async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                    proxy.stall()
                    await proxy.reset()
                    for _ in range(most):
                        await stack.enter_async_context(stranger(kind, broker.port))
                    accepted = proxy.accepted
                    proxy.flow()
                    await until(lambda: proxy.accepted > accepted + 5)
                    with pytest.raises(ConnectionLostError, match="(?i)max"):
                        async with backend.connect():
                            pass
                    await stack.aclose()
                    book.recovered.append(await flow.flows())
                    await until(lambda: is_back(events))
    assert whole(book.account())


@asynccontextmanager
async def stranger(kind, port):
    """A connection of somebody else, which takes a place as far as there is one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write({"redis": b"PING\r\n", "nats": b'CONNECT {"verbose":false}\r\nPING\r\n'}[kind])
        with contextlib.suppress(OSError):
            await reader.readline()
        yield
    finally:
        writer.transport.abort()


async def test_a_redis_that_runs_a_script_causes_no_unreported_loss(book):
    """Redis answers ``BUSY`` to every command until the script is killed; the loss is reported, and the publisher raises."""
    async with streaming("redis", book) as (broker, _, flow, events, _):
        with redis.Redis(port=broker.port, socket_timeout=60) as client, redis.Redis(port=broker.port) as killer:
            client.config_set("lua-time-limit", 50)
            script = asyncio.create_task(asyncio.to_thread(run_for_ever, client))
            try:
                await until(lambda: is_busy(killer))
                refused = flow.sender.number
                await until(lambda: flow.sender.number > refused + 100)
                assert not script.done()
            finally:
                with contextlib.suppress(redis.ResponseError):
                    killer.execute_command("SCRIPT", "KILL")
                await script
            book.recovered.append(await flow.flows())
        assert len(seen(events, Disconnected)) == len(seen(events, Reconnected))
    account = book.account()
    assert account.announced
    assert whole(account)


def run_for_ever(client):
    with contextlib.suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def is_busy(client):
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@live
async def test_one_of_three_servers_that_refuses_does_not_end_the_bus(kind, book):
    """One node requires another password: a bus that is disconnected from its node connects to another that accepts it."""
    events = Events(book.ledgers)
    with nats_cluster("# door") if kind == "nats" else redis_cluster() as cluster:
        async with cluster.connect(events=events, **QUICKLY) as receiving, cluster.connect(**QUICKLY) as sending:
            async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                for refusing, leaving, _staying in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
                    node = cluster.nodes[refusing]
                    await want_password(kind, node, PASSWORD)
                    await asyncio.to_thread(cluster.nodes[leaving].kill)
                    book.recovered.append(await flow.flows())
                    with pytest.raises(AuthenticationError):
                        async with msight_bus.connect(Backend(kind, alone(kind, node)).settings()):
                            pass
                    await want_password(kind, node, None)
                    await asyncio.to_thread(cluster.nodes[leaving].restart)
                    await flow.flows()
    assert whole(book.account())


def alone(kind, node):
    return {name: value for name, value in node.env.items() if name != "MSIGHT_PUBSUB_BACKEND"}


async def want_password(kind, node, password):
    """Have one server want a password, and cut those who gave none."""
    if kind == "nats":
        door = f'authorization {{ user: {USER}, password: "{PASSWORD}" }}'
        await NatsServer(node).reload("# door" if password else door, door if password else "# door")
        return
    with redis.Redis(port=node.port, password=None if password else PASSWORD) as client:
        client.config_set("requirepass", password or "")
        if password:
            client.execute_command("AUTH", password)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
