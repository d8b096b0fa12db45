"""When a deadline is missed and when a lifespan is over, to the moment: on a virtual clock."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from msight_bus import ConnectionLostError, NodeConfig, QueuePolicy
from msight_bus.events import DeadlineMissed, Disconnected
from msight_bus.subscription import Subscription
from msight_bus.testing import Faults
from tests.support.nodes import Collect, running


class Told(list):
    """When deadlines were missed, by the loop's clock."""

    def __init__(self):
        self.start = asyncio.get_running_loop().time()

    def __call__(self, event):
        if isinstance(event, DeadlineMissed):
            self.append(asyncio.get_running_loop().time() - self.start)


async def test_a_deadline_is_missed_at_its_time_and_once(msight_simulation, topic, caplog):
    told = Told()
    caplog.set_level(logging.INFO, "msight_bus")
    async with msight_simulation.connect(on_event=told) as bus, bus.subscribe(topic, deadline=10) as messages:
        await asyncio.sleep(5)
        await bus.publish(topic, b"")
        await asyncio.sleep(7)
        await bus.publish(topic, b"")
        await asyncio.sleep(100)
        assert told == pytest.approx([22], abs=0.01)
        await bus.publish(topic, b"")
        await asyncio.sleep(100)
        assert told == pytest.approx([22, 122], abs=0.01)
        assert messages.stats.deadlines_missed == 2
    await asyncio.sleep(100)
    assert len(told) == 2
    quiet, back = f"Deadline missed: no message on {topic} for 10 s.", f"Messages arrive again on {topic}."
    assert [record.getMessage() for record in caplog.records] == [quiet, back, quiet]


async def test_a_stream_that_never_begins_misses_its_deadline(msight_simulation, topic):
    told = Told()
    async with msight_simulation.connect(on_event=told) as bus, bus.subscribe(topic, deadline=3):
        await asyncio.sleep(50)
    assert told == pytest.approx([3], abs=0.01)


async def test_what_is_late_or_away_is_quiet(msight_simulation, topic):
    events: list = []
    async with msight_simulation.connect(on_event=events.append) as bus, bus.subscribe(topic, deadline=3):
        msight_simulation.disconnect()
        await asyncio.sleep(50)
        assert [type(event) for event in events] == [Disconnected, DeadlineMissed]


async def test_a_consumer_that_holds_the_stream_up_does_not_make_it_quiet(msight_simulation, topic):
    told = Told()
    settings = {"queue": QueuePolicy.block(2), "deadline": 1.5}
    async with msight_simulation.connect(on_event=told) as bus, bus.subscribe(topic, **settings) as messages:
        for _ in range(10):
            await bus.publish(topic, b"")
        await asyncio.sleep(1.8)  # of the two seconds for which it may block
        assert (messages.stats.queued, told) == (10, [])
        while messages.stats.queued:
            await anext(messages)
            await asyncio.sleep(0)
        await asyncio.sleep(100)
        assert len(told) == 1


@pytest.mark.parametrize("how", ["end", "fail", "close"])
async def test_after_the_end_nothing_is_expected(msight_simulation, topic, how):
    told = Told()
    async with msight_simulation.connect(on_event=told) as bus, bus.subscribe(topic, deadline=3) as messages:
        if how == "fail":
            messages._inbox.fail(ConnectionLostError("by the test"))
        else:
            await (messages.stop_receiving() if how == "end" else messages.close())
        await asyncio.sleep(50)
    assert told == []


async def test_age_counts_from_publishing_with_the_way_and_the_queue(msight_simulation, topic):
    msight_simulation.faults = Faults(seconds=8, seed=1)
    async with msight_simulation.connect() as bus, bus.subscribe(topic, lifespan=10) as messages:
        msight_simulation.inject("delay")
        published = msight_simulation.now
        await bus.publish(topic, b"late")
        while not messages.stats.queued:
            await asyncio.sleep(0.1)
        on_its_way = msight_simulation.now - published
        assert on_its_way > 1
        await bus.publish(topic, b"young")
        await asyncio.sleep(10.5 - on_its_way)
        assert (await anext(messages)).payload == b"young"
        assert messages.stats.dropped == {"too old": 1}


async def test_what_is_just_young_enough_is_handed_out(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic, lifespan=10) as messages:
        await bus.publish(topic, b"")
        await asyncio.sleep(9.9)
        await anext(messages)
        assert messages.stats.dropped == {}


@pytest.mark.parametrize("published_at", [None, "ahead"])
async def test_time_in_the_queue_counts_whatever_the_publishers_clock_says(msight_simulation, topic, published_at):
    async with msight_simulation.connect() as bus, bus.subscribe(topic, lifespan=10) as messages:
        await bus.publish(topic, b"old")
        await asyncio.sleep(1)
        messages._queue.messages[0].published_at = None if published_at is None else msight_simulation.now + 1000
        await asyncio.sleep(10)
        await bus.publish(topic, b"new")
        await asyncio.sleep(0.01)
        assert (await anext(messages)).payload == b"new"


async def test_if_all_are_too_old_the_next_one_is_waited_for(msight_simulation, topic):
    async with msight_simulation.connect() as bus, bus.subscribe(topic, lifespan=1) as messages:
        for _ in range(3):
            await bus.publish(topic, b"old")
        await asyncio.sleep(2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await anext(messages)
        assert messages.stats.dropped == {"too old": 3}
        await bus.publish(topic, b"new")
        assert (await anext(messages)).payload == b"new"
        await bus.publish(topic, b"old")
        await asyncio.sleep(2)
        await bus.drain()
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_a_deadline_and_a_lifespan_go_together(msight_simulation, topic):
    told = Told()
    async with (
        msight_simulation.connect(on_event=told) as bus,
        bus.subscribe(topic, deadline=3, lifespan=5) as messages,
    ):
        await bus.publish(topic, b"old")
        await asyncio.sleep(6)
        await bus.publish(topic, b"new")
        assert (await anext(messages)).payload == b"new"
        assert (messages.stats.deadlines_missed, messages.stats.dropped) == (1, {"too old": 1})


async def test_a_node_has_them_from_its_configuration(msight_simulation):
    told = Told()
    config = NodeConfig(name="n", subscribe_topic_name="cam", deadline=3.0, lifespan=0.5)
    node = Collect(config)
    async with msight_simulation.connect(on_event=told) as bus, running(bus, node):
        await asyncio.sleep(10)
        msight_simulation.faults = Faults(seconds=8, seed=1)
        msight_simulation.inject("delay", topic="cam")
        await bus.publish("cam", b"late")
        await asyncio.sleep(30)
        await bus.publish("cam", b"new")
        assert await node.until(1) == [b"new"]
        assert len(told) == 2


async def test_who_asks_for_neither_pays_for_neither(msight_simulation, topic):
    async with msight_simulation.connect() as bus:
        assert type(bus.subscribe(topic)) is Subscription


@pytest.mark.parametrize("name", ["deadline", "lifespan"])
@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "1"])
async def test_what_is_no_time_is_refused(msight_simulation, topic, name, wrong):
    async with msight_simulation.connect() as bus:
        with pytest.raises(ValueError, match=name):
            bus.subscribe(topic, **{name: wrong})
