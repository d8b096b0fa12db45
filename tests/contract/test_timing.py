"""A deadline for the stream and a lifespan for its messages, on every backend."""

from __future__ import annotations

import asyncio

from msight_bus.events import DeadlineMissed
from tests.contract.test_publish import take


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
    """Once as many deadlines were missed, and no more before something else would end the test."""
    async with asyncio.timeout(20):
        while len([event for event in events if isinstance(event, DeadlineMissed)]) < len(wanted):
            await asyncio.sleep(0.01)
    assert [event for event in events if isinstance(event, DeadlineMissed)] == wanted


async def test_what_waited_for_longer_than_its_lifespan_is_dropped_and_counted(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, lifespan=3600) as messages:
        for i in range(3):
            await bus.publish(topic, b"%d" % i)
        async with asyncio.timeout(20):
            while messages.stats.received < 3:
                await asyncio.sleep(0.005)
        age(messages, 2)
        assert [m.payload for m in await take(messages, 1)] == [b"2"]
        assert messages.stats.dropped == {"too old": 2}
        assert messages.stats.delivered == 1


def age(messages, n):
    """Let the oldest ``n`` queued messages have come two hours ago."""
    for message in list(messages._channel.items)[:n]:
        message.received_at -= 7200


async def test_a_list_has_only_what_is_young_enough(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, lifespan=3600) as messages:
        for i in range(4):
            await bus.publish(topic, b"%d" % i)
        async with asyncio.timeout(20):
            while messages.stats.received < 4:
                await asyncio.sleep(0.005)
        age(messages, 3)
        lists = messages.batches(2)
        assert [m.payload for m in await anext(lists)] == [b"3"]
        assert messages.stats.dropped == {"too old": 3}


async def test_what_was_too_old_counts_as_done(kafka, topic):
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id="g", lifespan=3600, ack="manual") as messages:
            for i in range(3):
                await bus.publish(topic, b"%d" % i)
            async with asyncio.timeout(20):
                while messages.stats.received < 3:
                    await asyncio.sleep(0.005)
            age(messages, 2)
            assert (await take(messages, 1))[0].payload == b"2"
        async with bus.subscribe(topic, group_id="g") as messages:
            assert (await take(messages, 1))[0].payload == b"2"  # the first that is not done
