"""Drain, close, and brokers that are not there."""

from __future__ import annotations

import asyncio

import pytest

import msight_bus
from msight_bus import ClosedError, ConnectionLostError, DrainTimeoutError, QueuePolicy, brokers
from tests.support.receiving import take


async def until(condition):
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_drain_hands_out_what_is_queued_and_ends_the_iterators(backend, topic):
    received = []
    async with backend.connect() as bus:
        subscription = bus.subscribe(topic, queue=QueuePolicy.block())
        started = asyncio.Event()
        go_on = asyncio.Event()

        async def consume():
            async with subscription as messages:
                started.set()
                async for message in messages:
                    await go_on.wait()
                    received.append(int(message.payload))
                    if message.sequence == 50:
                        await bus.publish(f"{topic}.done", b"publishing is still allowed")

        async with backend.connect() as other, other.subscribe(f"{topic}.done") as done, asyncio.TaskGroup() as tasks:
            consumer = tasks.create_task(consume())
            await started.wait()
            for i in range(50):
                await bus.publish(topic, b"%d" % i)
            await until(lambda: subscription.stats.received == 50)
            draining = tasks.create_task(bus.drain(20))
            await asyncio.sleep(0)
            go_on.set()
            await draining
            await consumer
            assert (await take(done, 1))[0].payload == b"publishing is still allowed"
        with pytest.raises(ClosedError):
            await bus.publish(topic, b"")
    assert received == list(range(50))


async def test_drain_from_a_consuming_task_ends_its_loop(backend, topic):
    received = []
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        for i in range(5):
            await bus.publish(topic, b"%d" % i)
        await until(lambda: messages.stats.queued == 5)
        async with asyncio.timeout(20):
            async for message in messages:
                received.append(int(message.payload))
                if len(received) == 1:
                    await bus.drain(5)
    assert received == list(range(5))


async def test_drain_that_takes_too_long_says_what_was_left(backend, topic):
    async with backend.connect() as bus:
        subscription = bus.subscribe(topic)
        subscribed, entered = asyncio.Event(), asyncio.Event()

        async def hang():
            async with subscription as messages:
                subscribed.set()
                async for _ in messages:
                    entered.set()
                    await asyncio.Event().wait()

        hanging = asyncio.create_task(hang())
        await subscribed.wait()
        for i in range(4):
            await bus.publish(topic, b"%d" % i)
        await entered.wait()
        await until(lambda: subscription.stats.queued >= 3)
        with pytest.raises(DrainTimeoutError, match=topic) as caught:
            await bus.drain(0.1)
        assert caught.value.left[f"subscription {topic}"] >= 3
        hanging.cancel()
        await asyncio.wait((hanging,))


@pytest.mark.parametrize("timeouts", [(0.1, 30), (30, 0.1)])
async def test_every_concurrent_drain_raises_the_error_of_the_earliest_deadline(backend, topic, timeouts):
    async with backend.connect() as bus:
        async with bus.subscribe(topic) as messages:
            for _ in range(2):
                await bus.publish(topic, b"x")
            await anext(messages)
            await until(lambda: messages.stats.queued == 1)
            drains = [asyncio.create_task(bus.drain(timeout)) for timeout in timeouts]
            async with asyncio.timeout(20):
                errors = await asyncio.gather(*drains, return_exceptions=True)
        assert [type(error) for error in errors] == [DrainTimeoutError] * 2
        assert [error.left for error in errors] == [
            {f"subscription {topic}": errors[0].left[f"subscription {topic}"]}
        ] * 2
        with pytest.raises(DrainTimeoutError):
            await bus.drain()


async def test_closing_the_bus_closes_its_subscriptions(backend, topic):
    async with backend.connect() as bus:
        waiting, unread = bus.subscribe(topic), bus.subscribe(f"{topic}.unread")
        await waiting.__aenter__()
        await unread.__aenter__()
        await bus.publish(f"{topic}.unread", b"given up")
        await until(lambda: unread.stats.queued == 1)
        consumer = asyncio.create_task(anext(waiting))
        await asyncio.sleep(0)
        assert not consumer.done()
    async with asyncio.timeout(20):
        with pytest.raises(ClosedError):
            await consumer
    with pytest.raises(ClosedError):
        await anext(unread)
    assert (unread.stats.queued, unread.stats.dropped) == (0, {"closed": 1})


@pytest.mark.parametrize("way", ["close", "drain"])
async def test_whoever_closes_a_bus_that_is_being_closed_waits_until_it_is(backend, topic, way):
    before = asyncio.all_tasks()
    async with backend.connect() as bus:
        async with bus.publisher(topic) as publisher:
            await publisher.send(b"x")
        closing = asyncio.create_task(bus.close())
        await asyncio.sleep(0)
        await (bus.drain() if way == "drain" else bus.close())
        assert asyncio.all_tasks() - before <= {closing}
    await closing


async def test_an_exception_in_the_body_closes_everything(backend, topic):
    with pytest.raises(ZeroDivisionError):
        async with backend.connect() as bus, bus.subscribe(topic):
            raise ZeroDivisionError
    with pytest.raises(ClosedError):
        await bus.publish(topic, b"")


UNREACHABLE = {
    "redis": lambda port: {
        "MSIGHT_REDIS_MESSAGE_BROKER_HOST": "127.0.0.1",
        "MSIGHT_REDIS_MESSAGE_BROKER_PORT": str(port),
    },
    "nats": lambda port: {"MSIGHT_NATS_SERVERS": f"['nats://127.0.0.1:{port}']"},
    "kafka": lambda port: {"MSIGHT_KAFKA_SERVERS": f"127.0.0.1:{port}"},
}


@pytest.mark.parametrize("name", UNREACHABLE)
async def test_a_broker_that_is_not_there_is_one_clear_error(name):
    port = brokers.free_port()
    settings = msight_bus.BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": name, **UNREACHABLE[name](port)})
    with pytest.raises(ConnectionLostError) as caught:
        async with msight_bus.connect(settings):
            pass
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert f"msight-bus up {name}" in str(caught.value)
    assert caught.value.__cause__ is not None


async def test_drain_says_so_when_a_consumer_never_comes_back(nats, topic):
    async with nats.connect() as bus:
        subscription = bus.subscribe(topic)
        subscribed, entered = asyncio.Event(), asyncio.Event()

        async def hang():
            async with subscription as messages:
                subscribed.set()
                async for _ in messages:
                    entered.set()
                    await asyncio.Event().wait()

        hanging = asyncio.create_task(hang())
        await subscribed.wait()
        await bus.publish(topic, b"x")
        await entered.wait()
        with pytest.raises(DrainTimeoutError, match="did not request the next message"):
            await bus.drain(0.1)
        hanging.cancel()
        await asyncio.wait((hanging,))


@pytest.mark.parametrize("timeout", ["x", 0, -1, float("nan"), float("inf")])
async def test_a_wrong_timeout_of_a_drain_is_refused_and_the_bus_stays_open(backend, topic, timeout):
    async with backend.connect() as bus:
        with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
            await bus.drain(timeout)
        await bus.publish(topic, b"x")


async def test_a_queue_that_is_no_policy_is_refused(backend, topic):
    async with backend.connect() as bus:
        with pytest.raises(TypeError, match=r"QueuePolicy\.latest"):
            bus.subscribe(topic, queue=5)
