"""MSIGHT_PUBLISHER_TOPICS bounds the topics that a bus keeps on Kafka."""

from __future__ import annotations

from tests.support.receiving import take
from tests.support.rig import until

LIMIT = 3


def remembered(bus):
    return list(bus.core.backend._producer._written)


async def test_an_evicted_topic_begins_a_new_session(topic, kafka):
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS=str(LIMIT)) as bus, bus.subscribe(topic) as messages:
        for _ in range(2):
            await bus.publish(topic, b"x")
        for i in range(3 * LIMIT):
            await bus.publish(f"{topic}.t{i}", b"x")
            assert len(remembered(bus)) <= LIMIT + 1  # a topic whose acknowledgement has just arrived is not idle yet
        await until(lambda: topic not in remembered(bus))
        for _ in range(2):
            await bus.publish(topic, b"x")
        *old, third, fourth = await take(messages, 4)
    assert [message.sequence for message in old] == [1, 2]
    assert (third.sequence, fourth.sequence) == (1, 2)
    assert third.session == fourth.session not in {message.session for message in old}


async def test_a_topic_with_an_open_publisher_stays(topic, kafka):
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS=str(LIMIT)) as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic) as publisher:
            await publisher.send(b"x")
            for i in range(3 * LIMIT):
                await bus.publish(f"{topic}.t{i}", b"x")
            await publisher.send(b"x")
        first, second = await take(messages, 2)
    assert (first.session, first.sequence + 1) == (second.session, second.sequence)


async def test_a_topic_that_was_used_again_outlasts_one_that_was_not(topic, kafka):
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS=str(LIMIT)) as bus:
        for i in range(3 * LIMIT):
            await bus.publish(f"{topic}.used", b"x")
            await bus.publish(f"{topic}.t{i}", b"x")
        assert f"{topic}.used" in remembered(bus)


async def test_topics_that_are_forgotten_in_turn_lose_nothing(topic, kafka):
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS="1", MSIGHT_KAFKA_UNKEYED="spread") as bus:
        async with bus.subscribe(f"{topic}.a") as one, bus.subscribe(f"{topic}.b") as other:
            for i in range(20):
                await bus.publish(f"{topic}.{'ab'[i % 2]}", b"%d" % i)
            assert sorted([int(message.payload) for message in await take(one, 10)]) == list(range(0, 20, 2))
            assert sorted([int(message.payload) for message in await take(other, 10)]) == list(range(1, 20, 2))


async def test_what_is_known_of_topics_is_forgotten_with_them(topic, kafka):
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS=str(LIMIT)) as bus:
        for i in range(3 * LIMIT):
            await bus.publish(f"{topic}.t{i}", b"x")
            async with bus.subscribe(f"{topic}.s{i}"):
                pass
        topics = bus.core.backend._directory
        assert len(topics._known) <= LIMIT
        assert topics._looked_up.keys() == topics._known.keys()
