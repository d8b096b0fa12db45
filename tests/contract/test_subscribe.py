"""Subscribing: who gets what, from when on, and what happens when iteration is interrupted."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from msight_bus import BusyError, CapabilityWarning, ClosedError, QueuePolicy, UnsupportedError
from tests.support.brokers import GROUP
from tests.support.receiving import take


async def test_what_is_published_after_entering_is_received(backend, topic):
    async with backend.connect() as bus:
        await bus.publish(topic, b"too early")
        for i in range(5):
            async with bus.subscribe(topic) as messages:
                await bus.publish(topic, b"%d" % i)
                (message,) = await take(messages, 1)
            assert message.payload == b"%d" % i


async def test_without_a_group_every_subscriber_gets_everything(backend, topic):
    async with backend.connect() as one, backend.connect() as two:
        async with one.subscribe(topic) as first, one.subscribe(topic) as second, two.subscribe(topic) as third:
            for i in range(50):
                await two.publish(topic, b"%d" % i)
            for messages in (first, second, third):
                assert [int(message.payload) for message in await take(messages, 50)] == list(range(50))


async def test_topics_are_separate(backend, topic):
    async with backend.connect() as bus:
        async with bus.subscribe(f"{topic}.a") as a, bus.subscribe(f"{topic}.b") as b:
            for i in range(20):
                await bus.publish(f"{topic}.{'ab'[i % 2]}", b"%d" % i)
            assert [int(m.payload) for m in await take(a, 10)] == list(range(0, 20, 2))
            assert [int(m.payload) for m in await take(b, 10)] == list(range(1, 20, 2))


async def collect(messages, into):
    async for message in messages:
        into.append(message)


async def test_members_of_a_group_share(backend, topic):
    async with backend.connect() as bus:
        if not bus.capabilities.load_balancing:
            pytest.skip(f"{backend.name} declares no load balancing")
        first: list = []
        second: list = []
        n = 400
        async with (
            backend.connect() as other,
            bus.subscribe(topic, group_id=GROUP) as a,
            other.subscribe(topic, group_id=GROUP) as b,
            asyncio.TaskGroup() as tasks,
        ):
            readers = [tasks.create_task(collect(a, first)), tasks.create_task(collect(b, second))]
            for i in range(n):
                await bus.publish(topic, b"%d" % i, key=f"object {i % 40}")
            async with asyncio.timeout(30):
                while len(first) + len(second) < n:
                    await asyncio.sleep(0.01)
            for reader in readers:
                reader.cancel()
        assert sorted(int(m.payload) for m in first + second) == list(range(n))
        assert first
        assert second
        for received in (first, second):
            for key in {m.key for m in received}:
                sequences = [m.sequence for m in received if m.key == key]
                assert sequences == sorted(sequences)


async def test_every_group_gets_all(backend, topic):
    async with backend.connect() as bus:
        if not bus.capabilities.load_balancing:
            pytest.skip(f"{backend.name} declares no load balancing")
        async with bus.subscribe(topic, group_id=f"{GROUP}-1") as a, bus.subscribe(topic, group_id=f"{GROUP}-2") as b:
            for i in range(30):
                await bus.publish(topic, b"%d" % i)
            assert [int(m.payload) for m in await take(a, 30)] == list(range(30))
            assert [int(m.payload) for m in await take(b, 30)] == list(range(30))


async def test_a_group_where_nothing_is_shared_is_said_once(redis, topic):
    async with redis.connect() as bus:
        with pytest.warns(CapabilityWarning, match="nats or kafka") as warned:
            async with bus.subscribe(topic, group_id=GROUP) as a, bus.subscribe(topic, group_id=GROUP) as b:
                await bus.publish(topic, b"to both")
                assert [m.payload for m in await take(a, 1) + await take(b, 1)] == [b"to both"] * 2
        assert len(warned) == 1
    async with redis.connect(MSIGHT_STRICT="1") as bus:
        with pytest.raises(UnsupportedError, match="nats or kafka"):
            bus.subscribe(topic, group_id=GROUP)


async def test_what_came_before_the_subscription_is_gone_or_replayed(backend, topic):
    async with backend.connect() as bus:
        for i in range(10):
            await bus.publish(topic, b"%d" % i)
        if bus.capabilities.replay:
            async with bus.subscribe(topic, start="earliest") as messages:
                assert [int(m.payload) for m in await take(messages, 10)] == list(range(10))
        else:
            with pytest.raises(UnsupportedError, match="kafka"):
                bus.subscribe(topic, start="earliest")
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"now")
            assert [m.payload for m in await take(messages, 1)] == [b"now"]


async def test_cancelling_loses_nothing(backend, topic):
    n = 300
    received = []
    async with backend.connect() as bus, bus.subscribe(topic) as messages:

        async def publish():
            for i in range(n):
                await bus.publish(topic, b"%d" % i)
                if i % 10 == 0:
                    await asyncio.sleep(0.001)

        publishing = asyncio.create_task(publish())
        async with asyncio.timeout(30):
            while len(received) < n:
                try:
                    async with asyncio.timeout(0.0005):
                        received.append(await anext(messages))
                except TimeoutError:
                    continue
        await publishing
        assert [int(m.payload) for m in received] == list(range(n))
        assert messages.stats.delivered == n


async def test_a_second_concurrent_consumer_is_an_error(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await anext(messages)
        await bus.publish(topic, b"for the first")
        async with asyncio.timeout(20):
            assert (await waiting).payload == b"for the first"


async def test_batches_are_lists_in_order(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        for i in range(100):
            await bus.publish(topic, b"%d" % i)
        received: list = []
        async with asyncio.timeout(20):
            async for batch in messages.batches(30, within=0.2):
                assert 1 <= len(batch) <= 30
                received += batch
                if len(received) == 100:
                    break
        assert [int(m.payload) for m in received] == list(range(100))


async def test_using_a_subscription_outside_its_context_is_an_error(backend, topic):
    async with backend.connect() as bus:
        subscription = bus.subscribe(topic)
        with pytest.raises(ClosedError):
            await anext(subscription)
        async with subscription as messages:
            pass
        with pytest.raises(ClosedError):
            await anext(messages)
        with pytest.raises(ClosedError):
            async with subscription:
                pass


async def test_leaving_unsubscribes(backend, topic):
    async with backend.connect() as bus:
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"1")
            await take(messages, 1)
        received = messages.stats.received
        async with bus.subscribe(topic) as others:
            await bus.publish(topic, b"2")
            await take(others, 1)
        assert messages.stats.received == received


async def test_the_ledger_of_a_subscription_balances(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.drop_oldest(20)) as messages:
        for i in range(200):
            await bus.publish(topic, b"%d" % i)
        async with asyncio.timeout(20):
            while messages.stats.received < 200:
                await asyncio.sleep(0.005)
        await take(messages, 5)
        stats = messages.stats
        assert stats.received == stats.delivered + sum(stats.dropped.values()) + stats.queued
        assert stats.queued_peak <= 20
        assert not stats.gaps
        assert not stats.missing


async def test_a_subscription_that_is_awaited_raises_with_its_usage(backend, topic):
    async with backend.connect() as bus:
        with pytest.raises(TypeError, match=r"^Subscribe with `async with bus\.subscribe\("):
            await bus.subscribe(topic)


async def test_a_subscription_that_was_never_entered_is_not_kept(backend, topic):
    async with backend.connect() as bus:
        forgotten = weakref.ref(bus.subscribe(topic))
        gc.collect()
        assert forgotten() is None
