"""The log after an outage: one line for the loss, one for the return, and nothing that nobody wrote on purpose."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest

from msight_bus import BusError, QueuePolicy
from msight_bus.events import Disconnected, Reconnected
from tests.support.receiving import take
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until
from tests.support.scripted_peers import ScriptedPeer, bus_at

QUIET = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}
LOST = re.compile(r"\bconnection lost\b|\bdisconnected\b", re.IGNORECASE)
BACK = re.compile(r"\bconnected again\b|\breconnected\b", re.IGNORECASE)

live = pytest.mark.parametrize("kind", LIVE)


@contextmanager
def no_stray_line(caplog):
    """Nothing reaches the loop's exception handler within the block, what is collected then included."""
    unhandled: list = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    try:
        yield
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert unhandled == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert "never retrieved" not in caplog.text


async def assert_alive(bus, topic):
    """A round trip through the broker."""
    async with bus.subscribe(topic) as messages:
        await bus.publish(topic, b"x")
        await take(messages, 1, within=3)


@pytest.mark.parametrize("kind", [pytest.param("redis"), "nats"])
async def test_a_frozen_broker_leaves_no_stray_line(kind, caplog):
    events: list = []
    with own_broker(kind) as (broker, backend), no_stray_line(caplog):
        async with backend.connect(events=events, **QUICKLY) as bus, bus.subscribe("a"):
            for count in (1, 2):
                broker.freeze()
                try:
                    await until(lambda count=count: len(seen(events, Disconnected)) >= count, within=4)
                    gc.collect()
                finally:
                    broker.thaw()
                await until(lambda count=count: len(seen(events, Reconnected)) >= count, within=4)
            await assert_alive(bus, "b")


@live
async def test_what_waits_for_a_frozen_broker_leaves_no_stray_line(kind, caplog):
    """A flush, an entering and a leaving, some of them cancelled."""
    limits = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "1", "MSIGHT_PUBLISH_TIMEOUT": "1"}
    events: list = []
    with own_broker(kind) as (broker, backend), no_stray_line(caplog):
        async with backend.connect(events=events, **limits) as bus, AsyncExitStack() as stack:
            left = await stack.enter_async_context(bus.subscribe("a"))
            publisher = await bus.publisher("b").__aenter__()
            await publisher.send(b"x")
            broker.freeze()
            try:
                await publisher.send(b"x")
                calls = [publisher.flush(), publisher.flush(), bus.subscribe("c").__aenter__()]
                waiting = [asyncio.ensure_future(call) for call in (*calls, left.__aexit__(None, None, None))]
                await asyncio.sleep(0.05)
                waiting[0].cancel()
                waiting[2].cancel()
                await until(lambda: seen(events, Disconnected), within=4)
            finally:
                broker.thaw()
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert result is None or isinstance(result, BusError | asyncio.CancelledError)
            try:
                await publisher.__aexit__(None, None, None)
            except BusError:
                pass  # the first message may be unconfirmed
            del waiting
            await assert_alive(bus, "d")


@pytest.mark.parametrize(
    "answer",
    [
        b"-ERR unknown command 'PING', with args beginning with: \r\n",
        b"-NOPERM User alice has no permissions to run the 'ping' command\r\n",
    ],
    ids=["renamed", "not permitted"],
)
async def test_a_ping_that_redis_does_not_know_leaves_no_stray_line(answer, caplog):
    """Its error is a sign of life: the connection stays."""
    peer = ScriptedPeer("redis", lambda command: answer if command.verb == "PING" else None)
    limits = {"MSIGHT_PING_INTERVAL": "0.05", "MSIGHT_PONG_TIMEOUT": "1"}
    with no_stray_line(caplog):
        async with bus_at(peer, **QUIET, **limits) as at, at.bus.subscribe("a") as messages:
            with no_stray_line(caplog):
                await until(lambda: len(peer.told("PING")) > 6, within=4)
                peer.subscriptions[-1].send(peer.subscriptions[-1].message(7, 1, b"x"))
                await take(messages, 1, within=3)
            assert not at.seen(Disconnected)


# -- one line a bus


@asynccontextmanager
async def bus_with_connections(backend, events, count):
    """A bus with so many connections, on Redis: publishing, subscribing, and one of each subscription that blocks."""
    async with backend.connect(events=events, **QUICKLY) as bus, bus.subscribe("a"), AsyncExitStack() as stack:
        for i in range(count - 2):
            await stack.enter_async_context(bus.subscribe(f"b{i}", queue=QueuePolicy.block(10)))
        yield bus


def lines(caplog, pattern):
    """Log lines of the bus that match, at the levels that are shown by default."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("msight_bus")
        and record.levelno >= logging.INFO
        and pattern.search(record.getMessage())
    ]


@pytest.mark.parametrize(
    ("kind", "connections"),
    [
        pytest.param("redis", 2),
        pytest.param("redis", 4),
        ("nats", 2),
        pytest.param("nats", 4),
    ],
)
async def test_an_outage_is_two_lines_however_many_connections_there_are(kind, connections, caplog):
    caplog.set_level(logging.INFO, logger="msight_bus")
    events: list = []
    with own_broker(kind) as (broker, backend):
        async with bus_with_connections(backend, events, connections) as bus:
            await asyncio.to_thread(broker.kill)
            await until(lambda: seen(events, Disconnected), within=4)
            await asyncio.to_thread(broker.restart)
            await until(lambda: seen(events, Reconnected), within=4)
            await assert_alive(bus, "c")
            await asyncio.sleep(0.3)  # what a second connection might say
            assert (len(lines(caplog, LOST)), len(lines(caplog, BACK))) == (1, 1)
            assert [type(event) for event in events if isinstance(event, Disconnected | Reconnected)] == [
                Disconnected,
                Reconnected,
            ]
