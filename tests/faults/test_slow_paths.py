"""Network paths that are slow, have a long delay, or drop packets: real brokers behind a proxy, with a ledger."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msight_bus.events import Disconnected, Reconnected
from tests.support.ledger import Account
from tests.support.proxy import FaultProxy, port_of, through
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until, whole
from tests.support.stream import Events, Sender, take_all, traffic

pytestmark = pytest.mark.faults
live = pytest.mark.parametrize("target", LIVE, indirect=True)

SIZE = 900_000
"""Bytes; NATS takes 1 MiB by default."""
UPLINK = SIZE / 30


@pytest.mark.timeout(200)
@live
async def test_payloads_that_take_30_seconds_on_the_uplink_arrive(target, book, topic):
    events, ledger = Events(book.ledgers), book.ledgers[topic]
    patient = {"MSIGHT_PING_INTERVAL": "1", "MSIGHT_PONG_TIMEOUT": "2", "MSIGHT_PUBLISH_TIMEOUT": "90"}
    async with FaultProxy(port_of(target), receive_buffer=8192) as proxy:
        async with target.connect() as near, through(proxy, target).connect(events=events, **patient) as bus:
            async with near.subscribe(topic) as messages:
                reading = asyncio.create_task(take_all(messages, ledger))
                proxy.conditions.uplink = UPLINK
                sender = Sender(bus, topic, ledger, random.Random(1))
                for size in (SIZE, 100, SIZE, 100):
                    assert await sender.send(size)
                await until(lambda: ledger.highest((None, 1)) == 4 or seen(events, Disconnected), within=120)
                proxy.conditions.uplink = None
                reading.cancel()
                await asyncio.wait((reading,))
    assert not events
    assert book.account() == Account(acknowledged=4, delivered=4)


MANY = 500


@asynccontextmanager
async def many_streams(sending, receiving, book):
    """A publisher and a subscription on each of many topics; gives what sends one message on each."""
    async with AsyncExitStack() as stack:
        topics = [f"t{i}" for i in range(MANY)]
        ledgers = [book.ledgers[topic] for topic in topics]
        entered = await asyncio.gather(*(stack.enter_async_context(receiving.subscribe(topic)) for topic in topics))
        reading = [asyncio.create_task(take_all(*each)) for each in zip(entered, ledgers, strict=True)]
        senders = [
            Sender(sending, topic, ledger, random.Random(1)) for topic, ledger in zip(topics, ledgers, strict=True)
        ]

        async def send_on_each():
            await asyncio.gather(*(sender.send(100) for sender in senders))

        def have_arrived():
            return all(
                ledger.highest((None, 1)) == sender.number for ledger, sender in zip(ledgers, senders, strict=True)
            )

        try:
            yield send_on_each, have_arrived
        finally:
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("delay", [0.05, 0.2])
@pytest.mark.parametrize("kind", LIVE)
async def test_500_subscriptions_on_a_path_with_a_long_delay_are_resubscribed_after_a_restart(kind, delay, book):
    """The number of round trips does not grow with the number of subscriptions."""
    events = Events(book.ledgers)
    patient = {"MSIGHT_RECONNECT_MAX": "0.5", "MSIGHT_PING_INTERVAL": "2", "MSIGHT_PONG_TIMEOUT": "4"}
    with own_broker(kind) as (broker, backend):
        async with FaultProxy(broker.port) as proxy:
            far = through(proxy, backend)
            proxy.conditions.delay = delay
            async with far.connect(events=events, **patient) as receiving, far.connect(**patient) as sending:
                async with many_streams(sending, receiving, book) as (send_on_each, have_arrived):
                    await send_on_each()
                    await until(have_arrived, within=30)
                    await send_on_each()
                    await asyncio.to_thread(broker.kill)
                    await until(lambda: seen(events, Disconnected))
                    await asyncio.to_thread(broker.restart)
                    began = time.monotonic()
                    await until(lambda: len(seen(events, Reconnected)) == len(seen(events, Disconnected)), within=40)
                    book.recovered.append(time.monotonic() - began)
                    await send_on_each()
                    await send_on_each()
                    await until(have_arrived, within=30)
                    proxy.conditions.delay = 0
    account = book.account()
    assert account.delivered >= 3 * MANY
    assert whole(account)


@pytest.mark.timeout(120)
@live
async def test_a_path_that_drops_all_packets_for_20_seconds(target, book, topic):
    """No FIN, RST or ICMP reveals the outage, and connections that lost data stay silent."""
    events = Events(book.ledgers)
    async with FaultProxy(port_of(target), seed=1) as proxy:
        backend = through(proxy, target)
        variables = QUICKLY | {"MSIGHT_PONG_TIMEOUT": "1", "MSIGHT_CONNECT_TIMEOUT": "3"}
        async with (
            backend.connect(events=events, **variables) as receiving,
            target.connect(MSIGHT_PUBLISH_TIMEOUT="1") as near,
            backend.connect(**variables, MSIGHT_PUBLISH_TIMEOUT="1") as sending,
            traffic(sending, receiving, topic, book.ledgers[topic], pause=0.005) as flow,
        ):
            near_topic = f"{topic}.near"
            async with traffic(near, receiving, near_topic, book.ledgers[near_topic], pause=0.005) as near_flow:
                proxy.vanish()
                gone_at = time.monotonic()
                await until(lambda: seen(events, Disconnected))
                await until(lambda: time.monotonic() > gone_at + 20, within=30)
                tries = proxy.accepted
                proxy.appear()
                await until(lambda: seen(events, Reconnected))
                book.recovered.append(await flow.flows())
                await near_flow.flows()
    assert tries <= 40  # each takes MSIGHT_CONNECT_TIMEOUT
    account = book.account()
    assert account.announced > 100
    assert whole(account)
