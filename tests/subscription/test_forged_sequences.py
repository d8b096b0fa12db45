"""A client with permission to publish forges sequences: losses that subscribers still count, on real brokers."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import asynccontextmanager

import pytest

from msight_bus.events import Gap
from tests.support.brokers import make_backend
from tests.support.raw_publishers import raw_publisher
from tests.support.receiving import take
from tests.support.rig import LIVE, until

LARGEST = 2**64 - 1
SESSION = 0x1234
live = pytest.mark.parametrize("kind", LIVE)


@asynccontextmanager
async def subscribed(kind, topic):
    """A subscription, its gaps, and a publisher that writes bytes."""
    events: list = []
    backend = make_backend(kind)
    async with backend.connect(events=events) as bus, bus.subscribe(topic) as messages:
        async with raw_publisher(backend) as publisher:
            yield messages, events, publisher


async def received(messages, count):
    await until(lambda: messages.stats.received == count)
    return messages.stats


@live
@pytest.mark.parametrize("forged", [LARGEST, 2**63, 2**40])
async def test_losses_are_counted_after_a_forged_message(kind, forged, topic):
    async with subscribed(kind, topic) as (messages, events, publisher):
        await publisher.send(topic, [(SESSION, 1), (SESSION, 2), (SESSION, forged), (SESSION, 3), (SESSION, 4)])
        stats = await received(messages, 5)
        assert (stats.missing, stats.duplicates, stats.gaps) == (0, 0, 1)
        if forged < LARGEST:
            await publisher.send(topic, [(SESSION, forged + 1)])
            await received(messages, 6)
        await publisher.send(topic, [(SESSION, 8), (SESSION, 9), (SESSION, 9)])
        await until(lambda: messages.stats.duplicates)
        assert (messages.stats.missing, messages.stats.duplicates, messages.stats.gaps) == (3, 1, 2)
    assert events == [Gap(topic, None, "implausible"), Gap(topic, 3, "lost")]


@live
@pytest.mark.parametrize("forged", [LARGEST, 2**40])
async def test_losses_are_counted_after_a_forged_announcement(kind, forged, topic):
    async with subscribed(kind, topic) as (messages, events, publisher):
        await publisher.send(topic, [(SESSION, 1), (SESSION, 2)])
        await received(messages, 2)
        for _ in range(2):
            await publisher.announce(topic, SESSION, forged)
        await until(lambda: events)
        await publisher.send(topic, [(SESSION, 3), (SESSION, 6)])
        await received(messages, 4)
        await publisher.announce(topic, SESSION, 8)
        await until(lambda: messages.stats.missing == 4)
        assert (messages.stats.duplicates, messages.stats.gaps) == (0, 3)
    assert events == [Gap(topic, None, "implausible"), Gap(topic, 2, "lost"), Gap(topic, 2, "lost")]


@live
async def test_a_message_with_sequence_zero_is_foreign(kind, topic):
    async with subscribed(kind, topic) as (messages, events, publisher):
        await publisher.send(topic, [(SESSION, 0), (SESSION, 1), (SESSION, 0), (SESSION, 2), (SESSION + 1, 0)])
        stats = await received(messages, 5)
        assert (stats.missing, stats.duplicates, stats.gaps) == (0, 0, 0)
        assert len(await take(messages, 5)) == 5
    assert not events


@live
async def test_a_flood_of_sessions_with_holes_takes_bounded_memory(kind, topic):
    sessions = range(1, 4097)
    async with subscribed(kind, topic) as (messages, _, publisher):
        await publisher.send(topic, [(LARGEST, 1)])
        await take(messages, 1)
        gc.collect()
        tracemalloc.start()
        try:
            for start in range(0, 4096, 512):
                part = sessions[start : start + 512]
                await publisher.send(topic, [(s, n) for s in part for n in (1, 5000)])
                await take(messages, 1024)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert messages.stats.missing == 4096 * 4998
    assert kept < 8_000_000


@live
async def test_twenty_thousand_publishers_are_tracked(kind, topic):
    sessions = range(1, 20_001)
    async with subscribed(kind, topic) as (messages, events, publisher):
        for count, sequence in enumerate((1, 3), start=1):
            for start in range(0, 20_000, 500):
                await publisher.send(topic, [(s, sequence) for s in sessions[start : start + 500]])
            await received(messages, count * 20_000)
        assert (messages.stats.missing, messages.stats.gaps) == (20_000, 20_000)
    assert len(events) >= 10_000  # the others may be dropped while more are queued (reporting.Reporter)
    assert all(event == Gap(topic, 1, "lost") for event in events)


@live
async def test_a_session_in_use_is_not_evicted(kind, topic):
    async with subscribed(kind, topic) as (messages, events, publisher):
        sequence = 0
        for start in range(1, 48_001, 6_000):
            sequence += 1
            others = [(other, 1) for other in range(start, start + 6_000)]
            await publisher.send(topic, [(LARGEST, sequence), *others])
        await publisher.send(topic, [(LARGEST, sequence + 3)])
        await received(messages, 8 * 6_001 + 1)
        assert messages.stats.missing == 2
    assert Gap(topic, 2, "lost") in events


@live
async def test_the_eviction_of_a_session_is_reported(kind, topic):
    async with subscribed(kind, topic) as (messages, events, publisher):
        await publisher.send(topic, [(LARGEST, 1)])
        for start in range(1, 40_001, 5_000):
            await publisher.send(topic, [(other, 1) for other in range(start, start + 5_000)])
        await publisher.send(topic, [(LARGEST, 5)])
        await received(messages, 40_002)
        assert messages.stats.missing == 0
    assert Gap(topic, None, "evicted") in events
