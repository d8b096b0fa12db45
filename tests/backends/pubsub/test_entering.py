"""Entering a subscription while the broker is away: waits for ``connect_timeout``, then says what it waited for."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import msight_bus
from msight_bus import ConnectionLostError, QueuePolicy
from msight_bus.events import Disconnected
from msight_bus.settings import BusSettings
from tests.support.listeners import fake
from tests.support.rig import LIVE, own_broker, seen, until
from tests.support.scripted_peers import ScriptedPeer
from tests.support.servers import variables

QUIET = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}
live = pytest.mark.parametrize("kind", LIVE)


@asynccontextmanager
async def abandoned(kind, subscribed, **limits):
    """A bus whose broker is away; whether it had subscribed before. Gives the bus and the broker's address."""
    events: list = []
    async with AsyncExitStack() as leaving:
        async with AsyncExitStack() as broker:
            way = await broker.enter_async_context(fake(ScriptedPeer(kind)))
            environ = {"MSIGHT_PUBSUB_BACKEND": kind, **variables(kind, way.port), **QUIET, **limits}
            connecting = msight_bus.connect(BusSettings(environ=environ), on_event=events.append)
            bus = await leaving.enter_async_context(connecting)
            if subscribed:
                await leaving.enter_async_context(bus.subscribe("before"))
        await until(lambda: seen(events, Disconnected), within=4)
        yield bus, f"127.0.0.1:{way.port}"


@live
@pytest.mark.parametrize("subscribed", [True, False], ids=["one more", "the first"])
@pytest.mark.parametrize("queue", [None, QueuePolicy.block(10)], ids=["live", "blocks"])
async def test_the_error_names_the_topic_and_the_broker(kind, subscribed, queue):
    async with abandoned(kind, subscribed, MSIGHT_CONNECT_TIMEOUT="0.3") as (bus, address):
        with pytest.raises(ConnectionLostError) as caught:
            async with asyncio.timeout(4), bus.subscribe("site.cam", queue=queue):
                pass
    assert type(caught.value) is ConnectionLostError
    assert "site.cam" in str(caught.value)
    assert address in str(caught.value)


@live
async def test_the_deadline_is_that_of_connecting(kind):
    """And not that of publishing, which is longer than this test."""
    limits = {"MSIGHT_CONNECT_TIMEOUT": "0.3", "MSIGHT_PUBLISH_TIMEOUT": "600"}
    async with abandoned(kind, True, **limits) as (bus, address):
        with pytest.raises(ConnectionLostError, match=f"site.cam.*{address}|{address}.*site.cam"):
            async with asyncio.timeout(4), bus.subscribe("site.cam"):
                pass


@pytest.mark.parametrize(
    ("kind", "subscribed"),
    [("redis", True), pytest.param("redis", False), ("nats", True), ("nats", False)],
)
async def test_entering_waits_for_a_broker_that_comes_back(kind, subscribed):
    events: list = []
    limits = {**QUIET, "MSIGHT_CONNECT_TIMEOUT": "5", "MSIGHT_PUBLISH_TIMEOUT": "0.2"}
    with own_broker(kind) as (broker, backend):
        async with backend.connect(events=events, **limits) as bus, AsyncExitStack() as stack:
            if subscribed:
                await stack.enter_async_context(bus.subscribe("before"))
            await asyncio.to_thread(broker.kill)
            await until(lambda: seen(events, Disconnected), within=4)
            entering = asyncio.create_task(stack.enter_async_context(bus.subscribe("a")))
            await asyncio.sleep(0.4)
            await asyncio.to_thread(broker.restart)
            messages = await entering
            await bus.publish("a", b"x")
            async with asyncio.timeout(4):
                assert (await anext(messages)).payload == b"x"
