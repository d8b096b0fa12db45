"""Every public coroutine is cancelled at each of its suspensions: the bus keeps working."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from msight_bus import QueuePolicy
from tests.support.brokers import make_backend
from tests.support.receiving import lose
from tests.support.sweep import CASES, Leftovers, sweep

everywhere = pytest.mark.parametrize(("backend", "when"), CASES, indirect=["backend"])

LARGE = bytes(200_000)
MARKER = b"marker"


class Reader:
    """A subscription that has to see everything, in order."""

    def __init__(self, bus, topic, messages):
        self.bus = bus
        self.topic = topic
        self.messages = messages
        self.sequences = []

    async def sees_everything(self):
        """What was published so far came without a hole, and the bus still works."""
        await self.bus.publish(self.topic, MARKER)
        async with asyncio.timeout(20):
            while True:
                message = await anext(self.messages)
                self.sequences.append(message.sequence)
                if message.payload == MARKER:
                    break
        assert self.sequences == list(range(1, len(self.sequences) + 1))
        stats = self.messages.stats
        assert (stats.delivered, stats.queued, stats.missing) == (len(self.sequences), 0, 0)
        assert not stats.dropped


@everywhere
async def test_publish(backend, topic, when):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        reader = Reader(bus, topic, messages)

        async def publish():
            for _ in range(4):
                await bus.publish(topic, LARGE)

        for attempt in sweep(when):
            await attempt.run(publish())
            await reader.sees_everything()
        if backend.name != "memory":  # which has room for so much
            assert attempt.nth > 1


@everywhere
async def test_publisher(backend, topic, when):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        reader = Reader(bus, topic, messages)

        async def publish():
            async with bus.publisher(topic, max_in_flight=2) as publisher:
                for _ in range(4):
                    await publisher.send(LARGE)
                await publisher.flush()
                await publisher.send(b"")

        for attempt in sweep(when):
            await attempt.run(publish())
            await reader.sees_everything()
        assert attempt.nth > 1


@pytest.mark.parametrize("how", ["messages", "batches"])
@everywhere
async def test_iterating(backend, topic, when, how):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        got = []

        async def read(until):
            if how == "messages":
                while len(got) < until:
                    got.append((await anext(messages)).sequence)
            else:
                batches = messages.batches(2, within=0.01)
                while len(got) < until:
                    got.extend([message.sequence for message in await anext(batches)])

        published = 0
        for attempt in sweep(when):
            published += 3
            reading = asyncio.create_task(attempt.run(read(published)))
            for _ in range(3):
                await bus.publish(topic, b"x")
                await asyncio.sleep(0)
            await reading
            await read(published)
            assert got == list(range(1, published + 1))
            assert messages.stats.delivered == published
        assert attempt.nth > 1


@pytest.mark.parametrize("queue", [QueuePolicy.drop_oldest(100), QueuePolicy.block(100)], ids=["shared", "dedicated"])
@everywhere
async def test_subscribing_and_leaving(backend, topic, when, queue):
    async with backend.connect(MSIGHT_ANNOUNCE="false") as bus, bus.subscribe(topic) as messages:
        reader = Reader(bus, topic, messages)
        await reader.sees_everything()

        async def subscribe():
            async with bus.subscribe(topic, queue=queue):
                await bus.publish(topic, b"x")

        leftovers = Leftovers()
        for attempt in sweep(when):
            await attempt.run(subscribe())
            assert bus.core.subscriptions == {messages}
            await leftovers.none()
            await reader.sees_everything()
        if backend.name != "memory":
            assert attempt.nth > 2


@pytest.mark.parametrize("queue", [QueuePolicy.drop_oldest(100), QueuePolicy.block(100)], ids=["shared", "dedicated"])
@pytest.mark.parametrize("backend", ["memory", "redis", "nats"], indirect=True)
@pytest.mark.parametrize("when", ["suspended", "woken"])
async def test_subscribing_to_many_topics_and_leaving(backend, topic, when, queue):
    """The pattern of another subscription, which is the same, is not affected."""
    async with backend.connect(MSIGHT_ANNOUNCE="false") as bus, bus.subscribe(f"{topic}.*") as messages:
        reader = Reader(bus, f"{topic}.a", messages)
        await reader.sees_everything()

        async def subscribe():
            async with bus.subscribe([f"{topic}.a", f"{topic}.b", f"{topic}.*", f"{topic}.>"], queue=queue):
                await bus.publish(f"{topic}.a", b"x")

        leftovers = Leftovers()
        for attempt in sweep(when):
            await attempt.run(subscribe())
            assert bus.core.subscriptions == {messages}
            await leftovers.none()
            await reader.sees_everything()
            connection = bus.core.backend._subscribing.connection
            assert {route.topic for route in connection._addresses} == {f"{topic}.*", "_msight.seq"}
            assert len(bus.core.backend._subscribing._patterns) == 1
        if backend.name != "memory":
            assert attempt.nth > 2


@pytest.mark.parametrize("kind", ["redis", "nats"])
@pytest.mark.parametrize("when", ["suspended", "woken"])
async def test_a_cancelled_subscribe_leaves_tail_loss_detection_on(kind, topic, when):
    backend = make_backend(kind)
    for attempt in sweep(when):
        async with backend.connect() as bus:
            await attempt.run(_enter(bus, topic))
            async with bus.subscribe(topic) as messages:
                async with backend.connect() as other:
                    await other.publish(topic, b"x")
                    await anext(messages)
                    lose(other, topic)
                async with asyncio.timeout(5):
                    while not messages.stats.missing:
                        await asyncio.sleep(0.001)
    assert attempt.nth > 2


async def _enter(bus, topic):
    async with bus.subscribe(topic):
        pass


@everywhere
async def test_the_registry(backend, when):
    for attempt in sweep(when):
        leftovers = Leftovers()
        async with backend.connect() as bus:

            async def look(bus=bus):
                await bus.nodes()

            await attempt.run(look())
            async with asyncio.timeout(20):
                assert not list(await bus.nodes())
        await leftovers.none()


@everywhere
async def test_drain(backend, topic, when):
    for attempt in sweep(when):
        leftovers = Leftovers()
        got = []
        async with backend.connect() as bus:
            entered = asyncio.Event()

            async def consume(bus=bus, entered=entered, got=got):
                async with bus.subscribe(topic, queue=QueuePolicy.block(100)) as messages:
                    entered.set()
                    async for message in messages:
                        got.append(message.sequence)
                        await asyncio.sleep(0)

            consuming = asyncio.create_task(consume())
            await entered.wait()
            for _ in range(5):
                await bus.publish(topic, b"x")
            async with asyncio.timeout(20):
                while not got:
                    await asyncio.sleep(0)
            await attempt.run(bus.drain(20))
            await bus.drain(20)
            await consuming
        assert got == list(range(1, len(got) + 1))
        await leftovers.none()
    assert attempt.nth > 1


@everywhere
async def test_close(backend, topic, when):
    for attempt in sweep(when):
        leftovers = Leftovers()
        with suppress(asyncio.CancelledError):
            async with backend.connect() as bus, bus.subscribe(topic), bus.subscribe(topic, queue=QueuePolicy.block(9)):
                await bus.nodes()
                await bus.publish(topic, b"x")
                await attempt.run(bus.close())
        await leftovers.none()
