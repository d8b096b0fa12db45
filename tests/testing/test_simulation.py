"""What is injected is what the bus finds, by the code that finds it on Redis and NATS."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import (
    BusSettings,
    ConfigError,
    ConnectionLostError,
    PublishTimeoutError,
    QueuePolicy,
)
from msight_bus.events import Disconnected, Gap, Reconnected
from msight_bus.testing import Faults, Simulation

A_WHILE = 10.0
"""Virtual seconds in which a bus reconnects and a quiet publisher's last sequences are announced."""


async def publish(bus, topic, numbers):
    for i in numbers:
        await bus.publish(topic, b"%d" % i)


async def queued(messages):
    """The numbers that have come."""
    return [int((await anext(messages)).payload) for _ in range(messages.stats.queued)]


async def test_without_faults_nothing_is_missing(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as messages:
        await publish(bus, topic, range(5000))
        await asyncio.sleep(A_WHILE)
        assert await queued(messages) == list(range(5000))
        assert (messages.stats.missing, messages.stats.gaps, messages.stats.duplicates) == (0, 0, 0)


async def test_a_dropped_message_is_a_gap_of_one(msight_simulation, topic):
    events: list = []
    async with msight_simulation.connect(on_event=events.append) as bus, bus.subscribe(topic) as messages:
        await publish(bus, topic, [0])
        await asyncio.sleep(0.01)
        msight_simulation.inject("drop", topic=topic)
        await publish(bus, topic, [1, 2])
        await asyncio.sleep(0.01)
        assert await queued(messages) == [0, 2]
        assert messages.stats.missing == 1
        assert events == [Gap(topic, 1, "lost")]


async def test_a_dropped_last_message_is_announced(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as messages:
        await publish(bus, topic, [0])
        await asyncio.sleep(0.01)
        msight_simulation.inject("drop", times=2)
        await publish(bus, topic, [1, 2])
        await asyncio.sleep(0.01)
        assert messages.stats.missing == 0
        await asyncio.sleep(A_WHILE)
        assert messages.stats.missing == 2


async def test_a_duplicate_is_counted(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as messages:
        msight_simulation.inject("duplicate")
        await publish(bus, topic, range(3))
        await asyncio.sleep(0.01)
        assert await queued(messages) == [0, 0, 1, 2]
        assert messages.stats.duplicates == 1


async def test_a_reordered_message_is_missing_until_it_comes(msight_simulation, topic):
    events: list = []
    async with msight_simulation.connect(on_event=events.append) as bus, bus.subscribe(topic) as messages:
        await publish(bus, topic, [0])
        await asyncio.sleep(0.01)
        msight_simulation.inject("reorder")
        await publish(bus, topic, [1, 2, 3])
        await asyncio.sleep(0.01)
        assert await queued(messages) == [0, 2, 1, 3]
        assert (messages.stats.missing, messages.stats.gaps) == (0, 1)
        assert events == [Gap(topic, 1, "lost")]


async def test_a_reordered_last_message_comes_all_the_same(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as messages:
        msight_simulation.inject("reorder")
        await publish(bus, topic, [0])
        await asyncio.sleep(0.01)
        assert messages.stats.received == 0
        await asyncio.sleep(msight_simulation.faults.seconds)
        assert await queued(messages) == [0]


async def test_a_delay_keeps_the_order(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as messages:
        msight_simulation.faults = Faults(seconds=5, seed=3)
        msight_simulation.inject("delay")
        sent = msight_simulation.now
        await publish(bus, topic, range(3))
        first = await anext(messages)
        assert 0 < first.received_at - sent <= 5
        assert first.published_at == pytest.approx(sent, abs=0.001)
        assert await queued(messages) == [1, 2]


async def test_what_is_injected_on_one_topic_spares_another(msight_simulation, topic):
    other = topic + ".other"
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as a, bus.subscribe(other) as b:
        msight_simulation.inject("drop", topic=other)
        for name in (topic, other):
            await publish(bus, name, [0])
        await asyncio.sleep(0.01)
        assert (a.stats.received, b.stats.received) == (1, 0)


async def test_what_is_published_while_a_subscriber_is_away_is_announced_and_counted(msight_simulation, topic):
    events: list = []
    async with (
        msight_simulation.connect(on_event=events.append) as bus,
        msight_simulation.connect() as other,
        bus.subscribe(topic) as messages,
    ):
        await publish(other, topic, [0])
        await asyncio.sleep(0.01)
        msight_simulation.disconnect(bus)
        await publish(other, topic, [1, 2, 3])
        await asyncio.sleep(A_WHILE)
        assert [type(event) for event in events] == [Disconnected]
        msight_simulation.reconnect(bus)
        await asyncio.sleep(A_WHILE)
        assert Reconnected in map(type, events)
        await publish(other, topic, [4])
        await asyncio.sleep(0.01)
        assert await queued(messages) == [0, 4]
        assert Gap(topic, None, "reconnect") in events
        assert messages.stats.missing == 3


async def test_publishing_while_disconnected_ends_at_the_deadline(msight_simulation, topic):
    settings = BusSettings(environ={"MSIGHT_PUBLISH_TIMEOUT": "3"}, backend="memory")
    loop = asyncio.get_running_loop()
    async with msight_simulation.connect(settings) as bus:
        msight_simulation.disconnect()
        await asyncio.sleep(0.01)
        before = loop.time()
        with pytest.raises(PublishTimeoutError):
            await bus.publish(topic, b"x")
        assert loop.time() - before == pytest.approx(3, abs=0.001)


async def test_a_publisher_raises_an_error_for_messages_unconfirmed_at_a_disconnect(msight_simulation, topic):
    async with msight_simulation.connect() as bus:
        with pytest.raises(ConnectionLostError, match="3 messages"):
            async with bus.publisher(topic) as publisher:
                for _ in range(3):
                    await publisher.send(b"x")
                msight_simulation.disconnect()
                msight_simulation.reconnect()


async def test_a_blocking_subscription_drops_after_its_time_and_spares_others(msight_simulation, topic):
    async with (
        msight_simulation.connect() as bus,
        bus.subscribe(topic, queue=QueuePolicy.block(10)) as slow,
        bus.subscribe(topic) as quick,
    ):
        await publish(bus, topic, range(100))
        await asyncio.sleep(1.9)
        assert (slow.stats.dropped, quick.stats.queued) == ({}, 100)
        await asyncio.sleep(0.2)
        assert slow.stats.dropped == {"block_timeout": 90}


async def test_a_reader_that_stalls_over_the_backlog_is_cut(msight_simulation, topic, monkeypatch):
    monkeypatch.setattr("msight_bus.backends.memory._BACKLOG_MESSAGES", 50)
    events: list = []
    async with (
        msight_simulation.connect(on_event=events.append) as bus,
        msight_simulation.connect() as other,
        bus.subscribe(topic, queue=QueuePolicy.block(1)) as messages,
    ):
        for i in range(100):
            await publish(other, topic, [i])
            await asyncio.sleep(0.001)
        await asyncio.sleep(A_WHILE)
        assert [type(event) for event in events] == [Disconnected, Gap, Reconnected, Gap]
        assert messages.stats.missing == 100 - messages.stats.received > 0


async def test_the_bus_cannot_be_opened_while_disconnected(msight_simulation):
    msight_simulation.disconnect()
    with pytest.raises(ConnectionLostError):
        async with msight_simulation.connect():
            pass
    msight_simulation.reconnect()
    async with msight_simulation.connect():
        pass


async def test_healing_ends_faults_by_chance_and_on_command(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic) as messages:
        msight_simulation.faults = Faults(drop=1)
        msight_simulation.inject("drop", times=5)
        msight_simulation.disconnect()
        msight_simulation.heal()
        await asyncio.sleep(A_WHILE)
        await publish(bus, topic, range(3))
        await asyncio.sleep(0.01)
        assert await queued(messages) == [0, 1, 2]


async def test_another_backend_is_refused(msight_simulation):
    with pytest.raises(ConfigError, match="memory"):
        async with msight_simulation.connect(BusSettings(environ={}, backend="nats")):
            pass


def test_the_same_seed_gives_the_same_run():
    def story(seed):
        simulation = Simulation(Faults(drop=0.1, duplicate=0.1, reorder=0.1, delay=0.1, seed=seed))

        async def scenario():
            told: list = []
            loop = asyncio.get_running_loop()
            async with (
                simulation.connect(on_event=lambda event: told.append((loop.time(), event))) as bus,
                bus.subscribe("a") as messages,
            ):
                for i in range(200):
                    await bus.publish("a", b"%d" % i)
                    await asyncio.sleep(0.01)
                    if i in (50, 150):
                        simulation.disconnect()
                        simulation.reconnect()
                await asyncio.sleep(A_WHILE)
                return told, await queued(messages), messages.stats

        return simulation.run(scenario())

    assert story(1) == story(1)
    assert story(1) != story(2)
