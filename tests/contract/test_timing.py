"""A deadline for the stream and a lifespan for its messages, on every backend."""

from __future__ import annotations

import asyncio

from msight_bus.events import DeadlineMissed
from tests.support.brokers import GROUP
from tests.support.clocks import clock_behind
from tests.support.receiving import take


async def test_a_stream_that_goes_quiet_is_reported_once_until_it_comes_back(backend, topic):
    events: list = []
    missed = [DeadlineMissed(topic, 0.3)]
    async with backend.connect(events=events) as bus, bus.subscribe(topic, deadline=0.3) as messages:
        await said(events, missed)
        await bus.publish(topic, b"back")
        await take(messages, 1)
        await said(events, missed * 2)
        assert messages.stats.deadlines_missed == 2


async def said(events, wanted):
    """Wait until as many deadlines were missed. However slow the machine is, no more are: a message has to come first."""
    async with asyncio.timeout(20):
        while len([event for event in events if isinstance(event, DeadlineMissed)]) < len(wanted):
            await asyncio.sleep(0.005)
    assert [event for event in events if isinstance(event, DeadlineMissed)] == wanted


async def publish_old(bus, topic, n):
    """Publish ``n`` messages that were published two hours ago by the publisher's clock."""
    with clock_behind(7200):
        for i in range(n):
            await bus.publish(topic, b"old %d" % i)


async def received(messages, n):
    async with asyncio.timeout(20):
        while messages.stats.received < n:
            await asyncio.sleep(0.005)


async def test_what_is_older_than_its_lifespan_is_dropped_and_counted(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, lifespan=3600) as messages:
        await publish_old(bus, topic, 2)
        await bus.publish(topic, b"new")
        await received(messages, 3)
        assert [m.payload for m in await take(messages, 1)] == [b"new"]
        assert messages.stats.dropped == {"too old": 2}
        assert messages.stats.delivered == 1


async def test_a_list_has_only_what_is_young_enough(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, lifespan=3600) as messages:
        await publish_old(bus, topic, 3)
        await bus.publish(topic, b"new")
        await received(messages, 4)
        lists = messages.batches(2)
        async with asyncio.timeout(20):
            assert [m.payload for m in await anext(lists)] == [b"new"]
        assert messages.stats.dropped == {"too old": 3}


async def test_what_was_too_old_counts_as_done(kafka, topic):
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP, lifespan=3600, ack="manual") as messages:
            await publish_old(bus, topic, 2)
            await bus.publish(topic, b"new")
            assert (await take(messages, 1))[0].payload == b"new"
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert (await take(messages, 1))[0].payload == b"new"  # the first that is not done
