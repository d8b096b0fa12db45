"""Reading for display: bounded memory, and every message is received or counted as dropped."""

from __future__ import annotations

import asyncio
import time

import pytest

from msight_bus.cli.exit_status import FAILED, NOT_REACHED
from msight_bus.cli.observing import Observation
from msight_bus.message import Message
from msight_bus.queue_policy import DEFAULT_BYTES
from msight_bus.testing import Simulation
from tests.support.brokers import make_backend

MEGABYTE = bytes(1_000_000)
COUNT = 200


async def test_a_slow_display_drops_the_oldest_messages_and_counts_them(topic):
    received: list[Message] = []
    dropped: list[Message] = []

    def receive(message):
        time.sleep(0.03)  # longer than a slice of the event loop
        received.append(message)

    async with make_backend("memory").connect() as bus:
        observation = Observation(bus, receive, until=lambda _: received[-1].sequence == COUNT, on_drop=dropped.append)
        complete = asyncio.create_task(observation.run([topic], None))
        while not observation.subscriptions:
            await asyncio.sleep(0.001)
        for _ in range(COUNT):
            await bus.publish(topic, MEGABYTE)
        await complete
        (subscription,) = observation.subscriptions
        assert subscription.stats.queued_peak <= DEFAULT_BYTES / len(MEGABYTE) + 1
        assert observation.dropped("drop_oldest") == len(dropped) > 0
        assert sorted(message.sequence for message in received + dropped) == list(range(1, COUNT + 1))
        assert observation.received == len(received)
        assert observation.counters[topic].missing == 0


async def test_overlapping_names_are_read_once(topic):
    """A literal topic that a pattern matches needs no subscription of its own."""
    async with make_backend("memory").connect() as bus:
        observation = Observation(bus, lambda _: None)
        observed = []
        observation._read = lambda topics, *_: observed.append(topics) or asyncio.sleep(60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await observation.run(["a.b", "a.*", "c", "d.>", "d.e.f"], None)
    assert observed == [("a.*", "d.>"), ("c",)]


async def test_without_messages_an_outage_is_the_failure(msight_simulation):
    async with msight_simulation.connect() as bus:
        observation = Observation(bus, lambda _: None)
        observing = asyncio.create_task(observation.run(["cam"], 5))
        await asyncio.sleep(1)
        assert observation.failure == FAILED
        msight_simulation.disconnect(bus)
        msight_simulation.reconnect(bus)
        await observing
        assert observation.failure == NOT_REACHED


def test_messages_after_a_silence_are_shown_when_they_arrive():
    simulation, shown = Simulation(), []

    async def scenario():
        async with simulation.connect() as bus, simulation.connect() as camera:
            observing = asyncio.create_task(
                Observation(bus, lambda message: shown.append(message.payload)).run(["cam"], None)
            )
            await asyncio.sleep(1)
            for silence in (600, 1, 1):
                await asyncio.sleep(silence)
                await camera.publish("cam", b"%d" % silence)
            await asyncio.sleep(1)
            observing.cancel()
            await asyncio.wait([observing])

    simulation.run(scenario())
    assert shown == [b"600", b"1", b"1"]
