"""A broker loses the end of its log, as in a power failure, and other records are written in its place."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import QueuePolicy
from msight_bus.events import Gap
from tests.support.brokers import GROUP
from tests.support.kafka_admin import make
from tests.support.kafka_answers import FETCH, changing_answers
from tests.support.kafka_logs import cut
from tests.support.receiving import numbers
from tests.support.rig import QUICKLY, own_broker, seen

pytestmark = [pytest.mark.faults, pytest.mark.timeout(100)]


@pytest.fixture(scope="module")
def own():
    with own_broker("kafka") as broker_and_backend:
        yield broker_and_backend


async def publish(bus, topic, *payloads):
    """Publish each message in a batch of its own."""
    for payload in payloads:
        await bus.publish(topic, b"%d" % payload)


async def lose_the_end(broker, topic):
    """Restart the broker without the last three batches of the topic."""
    await asyncio.to_thread(broker.kill)
    cut(broker, topic, 3)
    await asyncio.to_thread(broker.restart)


def without_fetches(away):
    """A change that withholds the answer to each fetch while ``away`` is set."""
    return lambda request, answer: None if away.is_set() and request.kind == FETCH else answer


@pytest.mark.parametrize("group_id", [GROUP, None], ids=["group", "alone"])
@pytest.mark.parametrize("written", [2, 8], ids=["below the position", "above the position"])
async def test_records_in_place_of_lost_ones_are_read(own, topic, group_id, written):
    """(kafkajs 818, Dekaf 2258, kafka-python 2978) Whether or not the log is as long again before the next fetch."""
    broker, kafka = own
    events: list = []
    is_away = asyncio.Event()
    await make(kafka, topic)
    async with (
        changing_answers(kafka, without_fetches(is_away)) as way,
        way.connect(events=events, **QUICKLY) as bus,
        bus.subscribe(topic, group_id=group_id) as messages,
    ):
        async with kafka.connect() as other:
            await publish(other, topic, *range(10))
        assert await numbers(messages, 10) == list(range(10))
        is_away.set()
        await lose_the_end(broker, topic)
        async with kafka.connect() as other:
            await publish(other, topic, *range(100, 100 + written))
            is_away.clear()
            assert await numbers(messages, written) == list(range(100, 100 + written))
            await publish(other, topic, 200)
            assert await numbers(messages, 1) == [200]
    assert seen(events, Gap) == [Gap(topic, None, "retention")]


async def test_a_publisher_continues_after_the_broker_lost_its_last_messages(own, topic):
    """(aiokafka 1017, confluent-kafka-dotnet 1943) The broker does not expect its sequence numbers."""
    broker, kafka = own
    await make(kafka, topic)
    async with kafka.connect(**QUICKLY) as bus:
        await publish(bus, topic, *range(10))
        await lose_the_end(broker, topic)
        await publish(bus, topic, *range(100, 105))
        async with bus.subscribe(topic, start="earliest") as messages:
            assert await numbers(messages, 12) == [*range(7), *range(100, 105)]


async def test_a_position_that_skips_records_of_several_leaders_has_lost_none(own, topic):
    broker, kafka = own
    events: list = []
    is_away = asyncio.Event()
    await make(kafka, topic)
    async with (
        changing_answers(kafka, without_fetches(is_away)) as way,
        way.connect(events=events, **QUICKLY) as bus,
        bus.subscribe(topic, queue=QueuePolicy.latest(2)) as messages,
        kafka.connect(**QUICKLY) as other,
    ):
        await publish(other, topic, 0)
        assert await numbers(messages, 1) == [0]
        is_away.set()
        for first in (10, 20):
            await asyncio.to_thread(broker.restart)
            await publish(other, topic, *range(first, first + 5))
        is_away.clear()
        assert await numbers(messages, 2) == [23, 24]
        await publish(other, topic, 30)
        assert await numbers(messages, 1) == [30]
    assert seen(events, Gap) == []
