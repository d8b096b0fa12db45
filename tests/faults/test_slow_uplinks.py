"""A slow uplink delays what is published; it is no dead connection. A dead connection is noticed while a bus publishes, too."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from msight_bus import ConnectionLostError, PublishTimeoutError
from msight_bus.events import Disconnected, Reconnected
from tests.support.proxy import FaultProxy, port_of, through
from tests.support.receiving import take
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until

UPLINK = 250_000
"""Bytes a second."""
PATIENCE = {"MSIGHT_PING_INTERVAL": "0.4", "MSIGHT_PONG_TIMEOUT": "0.8", "MSIGHT_PUBLISH_TIMEOUT": "30"}
"""What is written below needs a multiple of these deadlines; the proxy's own buffers need a fraction."""

live = pytest.mark.parametrize("target", LIVE, indirect=True)


@asynccontextmanager
async def slow_bus(target, events, **variables):
    """A bus behind a slow uplink."""
    async with FaultProxy(port_of(target), receive_buffer=8192) as proxy:
        async with through(proxy, target).connect(events=events, **PATIENCE, **variables) as bus:
            proxy.conditions.uplink = UPLINK
            try:
                yield bus
            finally:
                proxy.conditions.uplink = None


@live
async def test_a_payload_that_takes_longer_than_the_ping_deadlines_arrives(target, topic):
    events: list = []
    payload = bytes(range(250)) * 4000
    async with target.connect() as near, near.subscribe(topic) as messages, slow_bus(target, events) as bus:
        await bus.publish(topic, payload)
        await until(lambda: messages.stats.received or seen(events, Disconnected))
        assert not seen(events, Disconnected)
        assert (await take(messages, 1))[0].payload == payload
        await bus.publish(topic, b"next")
        (following,) = await take(messages, 1)
    assert (following.payload, following.sequence) == (b"next", 2)
    assert not events


@live
async def test_a_subscription_that_begins_and_ends_behind_a_payload_breaks_no_connection(target, topic):
    """On NATS, both commands wait behind the payload for longer than their deadlines."""
    events: list = []
    slow = slow_bus(target, events, MSIGHT_CONNECT_TIMEOUT="1")
    async with target.connect() as near, near.subscribe(topic) as messages, slow as bus:
        await bus.publish(topic, bytes(1_000_000))
        with suppress(ConnectionLostError):  # on Redis, subscriptions have a connection of their own
            async with bus.subscribe(f"{topic}.other"):
                pass
        await until(lambda: messages.stats.received or seen(events, Disconnected))
    assert not events


@pytest.mark.parametrize("target", ["redis", pytest.param("nats")], indirect=True)
async def test_an_uplink_that_is_always_full_loses_nothing(target, topic):
    events: list = []
    payloads = [bytes([i]) * 30_000 for i in range(36)]
    async with target.connect() as near, near.subscribe(topic) as messages, slow_bus(target, events) as bus:

        async def publish():
            async with bus.publisher(topic) as publisher:
                for payload in payloads:
                    await publisher.send(payload)

        publishing = asyncio.create_task(publish())
        try:
            await until(lambda: messages.stats.received == len(payloads) or seen(events, Disconnected))
            assert not seen(events, Disconnected)
            await publishing  # everything was confirmed
            assert [message.payload for message in await take(messages, len(payloads))] == payloads
            assert (messages.stats.missing, messages.stats.gaps) == (0, 0)
        finally:
            publishing.cancel()
            await asyncio.wait((publishing,))
    assert not events


async def publish_on(bus, size):
    """Publish until cancelled; what a dead connection does not take is no matter."""
    while True:
        try:
            await bus.publish("a", bytes(size))
        except PublishTimeoutError:
            continue
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", [100, 60_000])
@pytest.mark.parametrize("harm", ["frozen", "half-open"])
@pytest.mark.parametrize("kind", LIVE)
async def test_a_dead_connection_is_noticed_while_publishing(kind, harm, size):
    """The kernel of a frozen peer goes on acknowledging bytes; that of a peer that never reads takes megabytes."""
    events: list = []
    with own_broker(kind) as (broker, backend):
        async with FaultProxy(broker.port) as proxy:
            async with through(proxy, backend).connect(events=events, **QUICKLY, MSIGHT_CONNECT_TIMEOUT="3") as bus:
                publishing = asyncio.create_task(publish_on(bus, size))
                try:
                    broker.freeze() if harm == "frozen" else proxy.stall()
                    await until(lambda: seen(events, Disconnected))
                finally:
                    broker.thaw()
                    proxy.flow()
                    publishing.cancel()
                    await asyncio.wait((publishing,))
                await until(lambda: seen(events, Reconnected))
