"""Several servers: a refusal is final when every server that can be reached has refused. On scripted peers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msight_bus import AuthenticationError, ConnectionLostError
from msight_bus.backends.failover import describe
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import backend_at
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.rig import LIVE, QUICKLY, seen, until

live = pytest.mark.parametrize("kind", LIVE)
REFUSES = {"redis": b"-WRONGPASS invalid username-password pair\r\n", "nats": b"-ERR 'Authorization Violation'\r\n"}
WAITS = {"redis": b"-LOADING Redis is loading the dataset in memory\r\n", "nats": b"-ERR 'Authentication Timeout'\r\n"}
ENTERING = {"redis": "AUTH", "nats": "CONNECT"}


def saying(kind, answer):
    """A peer that answers ``answer()`` to whoever authenticates, or takes the connection if that is None."""
    return Peer(kind, lambda command: answer() if command.verb == ENTERING[kind] else None)


async def hang(reader, writer):
    await asyncio.Event().wait()


@asynccontextmanager
async def servers(kind, *peers):
    """A backend with these servers, and their listeners."""
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(fake(peer)) for peer in peers]
        yield backend_at(kind, *(way.port for way in ways)), ways


def test_the_error_of_the_operating_system_is_named_whatever_wraps_it_or_caused_it():
    error, system = RuntimeError("the client's"), ConnectionRefusedError(111, "Connect call failed")
    error.__cause__, system.__context__ = system, KeyError("host")
    assert describe(error, 1.0) == "ConnectionRefusedError: [Errno 111] Connect call failed"


async def connect(backend, **more):
    async with backend.connect(**{"MSIGHT_CONNECT_TIMEOUT": "1", **more}):
        pass


@live
async def test_a_server_that_refuses_is_skipped_if_another_accepts(kind):
    async with servers(kind, saying(kind, lambda: REFUSES[kind]), Peer(kind)) as (backend, ways):
        async with asyncio.timeout(20):
            while not (ways[0].connections and ways[1].connections):  # the first one is chosen at random
                await connect(backend)


@live
async def test_a_refusal_by_every_server_is_raised_after_all_were_tried(kind):
    peers = [saying(kind, lambda: REFUSES[kind]) for _ in range(3)]
    async with servers(kind, *peers) as (backend, ways):
        with pytest.raises(AuthenticationError, match="refused the credentials") as caught:
            await connect(backend)
    assert [way.connections for way in ways] == [1, 1, 1]
    assert all(f"127.0.0.1:{way.port}" in str(caught.value) for way in ways)


@live
async def test_a_server_that_cannot_be_reached_does_not_count(kind):
    async with servers(kind, saying(kind, lambda: REFUSES[kind])) as (_, ways):
        async with fake(hang) as gone:
            pass
        with pytest.raises(AuthenticationError, match=f"127.0.0.1:{gone.port}"):
            await connect(backend_at(kind, ways[0].port, gone.port))


@live
async def test_a_server_that_hangs_until_the_deadline_does_not_count(kind):
    async with servers(kind, saying(kind, lambda: REFUSES[kind]), hang) as (backend, _):
        with pytest.raises(AuthenticationError):
            await connect(backend, MSIGHT_CONNECT_TIMEOUT="0.5")


@live
async def test_a_server_with_a_temporary_error_is_waited_for(kind):
    peers = saying(kind, lambda: REFUSES[kind]), saying(kind, lambda: WAITS[kind])
    async with servers(kind, *peers) as (backend, _):
        with pytest.raises(ConnectionLostError, match="(?i)loading|timeout") as caught:
            await connect(backend)
    assert "WRONGPASS" in str(caught.value) or "Authorization Violation" in str(caught.value)


@live
async def test_a_temporary_error_on_reconnecting_is_retried(kind):
    """For example an authentication timeout of NATS after a restart with many clients."""
    told: list[bytes | None] = []
    events: list = []
    async with servers(kind, saying(kind, lambda: told.pop() if told else None)) as (backend, ways):
        async with backend.connect(events=events, **QUICKLY) as bus:
            told += [WAITS[kind]] * 3
            ways[0].cut()
            await until(lambda: seen(events, Reconnected))
            await bus.publish("a", b"x")
    assert ways[0].connections >= 5


@live
async def test_a_server_that_has_not_reloaded_its_users_does_not_end_the_bus(kind):
    refusing = False
    events: list = []
    peers = [saying(kind, lambda: REFUSES[kind] if refusing else None), Peer(kind)]
    async with servers(kind, *peers) as (backend, ways):
        async with backend.connect(events=events, **QUICKLY) as bus:
            refusing = True
            for number in range(1, 4):
                for way in ways:
                    way.cut()
                await until(lambda number=number: len(seen(events, Reconnected)) == number)
            await bus.publish("a", b"x")
    assert len(seen(events, Disconnected)) == 3
