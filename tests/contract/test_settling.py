"""Acknowledgement: what comes again, and what does not."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import DrainTimeoutError, UnsupportedError
from tests.support.brokers import GROUP
from tests.support.receiving import take


async def publish(bus, topic, n):
    for i in range(n):
        await bus.publish(topic, b"%d" % i)


async def test_ack_and_nack_where_nothing_is_acknowledged(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"x")
        (message,) = await take(messages, 1)
        await message.ack()
        if not bus.capabilities.acknowledgement:
            with pytest.raises(UnsupportedError, match="kafka"):
                await message.nack()


async def test_a_restarted_consumer_gets_what_was_not_done(backend, topic):
    async with backend.connect() as bus:
        if not bus.capabilities.load_balancing:
            pytest.skip(f"{backend.name} declares no groups")
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await publish(bus, topic, 10)
            got = 0
            async for message in messages:
                assert int(message.payload) == got
                got += 1
                if got == 4:
                    break  # 0, 1 and 2 are done; 3 was in hand
        await bus.publish(topic, b"10")
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            if bus.capabilities.acknowledgement:
                assert [int(m.payload) for m in await take(messages, 8)] == list(range(3, 11))
            else:
                await bus.publish(topic, b"11")
                assert [int(m.payload) for m in await take(messages, 1)] == [11]


async def test_iterating_again_delivers_an_unacknowledged_message_again(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await publish(bus, topic, 3)
        with pytest.raises(RuntimeError):
            async for _ in messages:
                raise RuntimeError("the handler failed")
        async with asyncio.timeout(20):
            async for message in messages:
                first = int(message.payload)
                break
        assert first == (0 if bus.capabilities.acknowledgement else 1)


async def test_iterating_again_delivers_no_acknowledged_message_again(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await publish(bus, topic, 3)
        received: list = []
        async with asyncio.timeout(20):
            while len(received) < 3:
                async for message in messages:
                    received.append((int(message.payload), message.redeliveries))
                    await message.ack()
                    break
    assert received == [(0, 0), (1, 0), (2, 0)]


async def test_drain_waits_for_the_message_in_hand(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"x")
        await asyncio.create_task(take(messages, 1))  # a consumer that ends with the message in hand
        if not bus.capabilities.acknowledgement:
            await bus.drain(20)
            return
        with pytest.raises(DrainTimeoutError) as caught:
            await bus.drain(0.1)
    assert caught.value.left == {f"subscription {topic}": 1}


async def test_ack_before_leaving_settles_the_message_in_hand(kafka, topic):
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await publish(bus, topic, 3)
            (message,) = await take(messages, 1)
            await message.ack()
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert [int(m.payload) for m in await take(messages, 2)] == [1, 2]


async def test_asking_for_the_next_marks_the_one_before_even_if_cancelled(kafka, topic):
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"0")
            await take(messages, 1)
            with pytest.raises(TimeoutError):
                await take(messages, 1, within=0.05)
        await bus.publish(topic, b"1")
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert [int(m.payload) for m in await take(messages, 1)] == [1]


async def test_manual_acknowledgements_commit_the_finished_prefix_only(kafka, topic):
    async with kafka.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            await publish(bus, topic, 6)
            received = await take(messages, 6)
            for i in (0, 1, 3, 5):
                await received[i].ack()
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            assert [int(m.payload) for m in await take(messages, 4)] == [2, 3, 4, 5]


async def test_nack_delivers_again_and_then_dead_letters(kafka, topic):
    async with kafka.connect(MSIGHT_KAFKA_MAX_REDELIVERIES="2") as bus:
        suffix = bus.settings.dead_letter_suffix
        async with (
            bus.subscribe(topic + suffix) as dead,
            bus.subscribe(topic, group_id=GROUP, ack="manual") as messages,
        ):
            await bus.publish(topic, b"poison", headers={"a": "b"}, key="k")
            await bus.publish(topic, b"fine", key="k")
            for redeliveries in range(3):
                (message,) = await take(messages, 1)
                assert (message.payload, message.redeliveries) == (b"poison", redeliveries)
                await message.nack()
            (message,) = await take(messages, 1)
            assert message.payload == b"fine"
            (letter,) = await take(dead, 1)
            assert (letter.payload, letter.headers["a"], letter.headers["msight-dead-topic"]) == (b"poison", "b", topic)
            await message.ack()
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"next")
            assert (await take(messages, 1))[0].payload == b"next"
