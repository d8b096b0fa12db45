"""Brokers are killed, restarted or frozen while a bus runs. A test that kills a broker has its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from msight_bus import ConnectionLostError, PublishTimeoutError, QueuePolicy
from msight_bus.events import Disconnected, Gap, Reconnected
from tests.support.brokers import breakable_broker, make_backend
from tests.support.receiving import lose, take
from tests.support.rig import EVERY, LIVE, frozen, own_broker, seen, until


@pytest.mark.parametrize("kind", LIVE)
async def test_the_bus_reconnects_to_a_broker_that_was_killed_and_restarted(kind):
    events: list = []
    with own_broker(kind) as (broker, backend):
        async with backend.connect(events=events, MSIGHT_RECONNECT_MAX="0.2") as bus, bus.subscribe("a") as messages:
            await bus.publish("a", b"before")
            await take(messages, 1)
            for _ in range(2):
                events.clear()
                await asyncio.to_thread(broker.kill)
                await until(lambda: seen(events, Disconnected))
                waiting = asyncio.create_task(bus.publish("a", b"while away"))
                await asyncio.to_thread(broker.restart)
                await until(lambda: seen(events, Reconnected))
                await waiting
                await bus.publish("a", b"after")
                received = await take(messages, 1)
                if received[0].payload == b"while away":
                    received = await take(messages, 1)
                assert received[0].payload == b"after"
                assert Gap("a", None, "reconnect") in events
            assert messages.stats.gaps >= 2


@pytest.mark.parametrize("kind", EVERY)
async def test_a_frozen_broker_is_detected_by_the_ping_deadline(kind, topic):
    events: list = []
    variables = {"MSIGHT_PING_INTERVAL": "0.2", "MSIGHT_PONG_TIMEOUT": "0.3", "MSIGHT_RECONNECT_MAX": "0.2"}
    broker = breakable_broker(kind)
    backend = make_backend(kind, broker)
    async with backend.connect(events=events, MSIGHT_CONNECT_TIMEOUT="3", **variables) as bus:
        async with bus.subscribe(topic) as messages:
            with frozen(broker):
                await until(lambda: seen(events, Disconnected))
            await until(lambda: seen(events, Reconnected))
            await bus.publish(topic, b"after")
            assert (await take(messages, 1))[0].payload == b"after"


@pytest.mark.parametrize("kind", EVERY)
async def test_publishing_while_the_broker_is_down_fails_at_the_deadline(kind):
    with own_broker(kind) as (broker, backend):
        async with backend.connect(MSIGHT_PUBLISH_TIMEOUT="2", MSIGHT_DRAIN_TIMEOUT="0.5") as bus:
            await bus.publish("a", b"before")
            await asyncio.to_thread(broker.kill)
            with pytest.raises(PublishTimeoutError):
                for _ in range(100):
                    await bus.publish("a", b"x")
                    await asyncio.sleep(0.01)


async def test_closing_does_not_wait_for_a_kafka_that_is_known_to_be_down():
    events: list = []
    variables = {"MSIGHT_PING_INTERVAL": "0.2", "MSIGHT_PONG_TIMEOUT": "0.3", "MSIGHT_DRAIN_TIMEOUT": "600"}
    with own_broker("kafka") as (broker, backend):
        async with backend.connect(events=events, **variables) as bus:
            await bus.publish("a", b"before")
            await asyncio.to_thread(broker.kill)
            await until(lambda: seen(events, Disconnected))
            async with asyncio.timeout(30):
                publisher = await bus.publisher("a").__aenter__()
                await publisher.send(b"never acknowledged")
                await bus.close()


@pytest.mark.parametrize("kind", LIVE)
async def test_a_publisher_raises_an_error_for_messages_unconfirmed_at_a_disconnect(kind):
    with own_broker(kind) as (broker, backend):
        async with backend.connect(MSIGHT_RECONNECT_MAX="0.2") as bus:
            broker.freeze()
            with pytest.raises(ConnectionLostError, match="never confirmed"):
                async with bus.publisher("a") as publisher:
                    for _ in range(3):
                        await publisher.send(b"x")
                    await asyncio.sleep(0)
                    broker.kill()
                    await asyncio.to_thread(broker.restart)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", LIVE)
async def test_a_bus_closes_although_the_client_library_swallows_the_cancellation_of_a_reconnect(kind):
    trying = asyncio.Event()
    async with make_backend(kind).connect() as bus:
        owner = bus.core.backend._publishing
        connect = owner._connect

        async def swallow():
            connection = await connect()
            trying.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return connection

        owner._connect = swallow
        owner.connection.fail(ConnectionLostError("cut by the test"))
        async with asyncio.timeout(5):
            await trying.wait()


@pytest.mark.parametrize("kind", LIVE)
async def test_at_the_reconnect_limit_every_subscription_raises(kind):
    with own_broker(kind) as (broker, backend):
        limits = {"MSIGHT_RECONNECT_LIMIT": "2", "MSIGHT_RECONNECT_MAX": "0.05"}
        async with backend.connect(**limits) as bus, bus.subscribe("a") as messages:
            await asyncio.to_thread(broker.kill)
            with pytest.raises(ConnectionLostError, match="MSIGHT_RECONNECT_LIMIT"):
                await take(messages, 1)
            with pytest.raises(ConnectionLostError, match="MSIGHT_RECONNECT_LIMIT"):
                for _ in range(100):
                    await bus.publish("a", b"x")
                    await asyncio.sleep(0.01)


async def test_kafka_loses_no_acknowledged_message_in_a_restart():
    with own_broker("kafka") as (broker, backend):
        async with backend.connect(MSIGHT_PUBLISH_TIMEOUT="60") as bus:
            async with bus.subscribe("a", group_id="g") as messages:
                for i in range(20):
                    await bus.publish("a", b"%d" % i)
                received = [int(m.payload) for m in await take(messages, 10)]
                await asyncio.to_thread(broker.kill)
                publishing = asyncio.create_task(bus.publish("a", b"20"))
                await asyncio.to_thread(broker.restart)
                await publishing
                async with asyncio.timeout(50):
                    while len(set(received)) < 21:
                        received.append(int((await anext(messages)).payload))
    assert sorted(set(received)) == list(range(21))


@pytest.mark.parametrize("kind", LIVE)
@pytest.mark.parametrize("queue", [QueuePolicy.drop_oldest(100), QueuePolicy.block(100)], ids=["shared", "dedicated"])
async def test_the_loss_of_the_last_messages_before_a_silence_is_reported(kind, queue, topic):
    events: list = []
    target = make_backend(kind)
    async with (
        target.connect(events=events, MSIGHT_RECONNECT_MIN="0.6", MSIGHT_RECONNECT_MAX="0.6") as bus,
        target.connect(MSIGHT_ANNOUNCE_INTERVAL="0.1") as other,
        bus.subscribe(topic, queue=queue) as messages,
    ):
        assert bus.capabilities.tail_loss
        await other.publish(topic, b"0")
        await take(messages, 1)
        connection = messages._at_broker._connection
        connection.connection.fail(ConnectionLostError("cut by the test"))
        await until(lambda: connection.connection is None)
        for i in range(7):
            await other.publish(topic, b"%d" % i)
        await until(lambda: messages.stats.missing == 7)
        assert Gap(topic, 7, "lost") in events


async def test_the_last_sequences_are_announced_on_close(nats, topic):
    async with nats.connect() as bus, bus.subscribe("other"), bus.subscribe(topic) as messages:
        async with nats.connect(MSIGHT_ANNOUNCE_INTERVAL="1000") as other:
            await other.publish(topic, b"0")
            await take(messages, 1)
            lose(other, topic)
        await until(lambda: messages.stats.missing == 1)
