"""A consumer of a log is cancelled at each suspension: only processed messages are committed, and none is skipped."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.support.brokers import GROUP
from tests.support.sweep import sweep

# Who is cancelled while joining leaves a member behind, for which the others wait until its session is over.
SETTINGS = {
    "MSIGHT_KAFKA_PARTITIONS": "1",
    "MSIGHT_KAFKA_MAX_REDELIVERIES": "0",
    "MSIGHT_KAFKA_SESSION_TIMEOUT": "1",
}


@asynccontextmanager
async def observer(kafka, topic):
    """A consumer that can be asked what the group has committed, and is no member."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.env["MSIGHT_KAFKA_SERVERS"].strip("[]'"), group_id=GROUP, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        yield consumer
    finally:
        await consumer.stop()


@pytest.mark.parametrize("when", ["suspended", "woken"])
@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_only_processed_messages_are_committed(kafka, topic, when, ack):
    processed = set()
    async with kafka.connect(**SETTINGS) as bus:

        async def consume(until):
            async with bus.subscribe(topic, group_id=GROUP, start="earliest", ack=ack) as messages:
                async for message in messages:
                    await asyncio.sleep(0)
                    if ack == "auto":
                        processed.add(message.offset)
                    elif message.offset % 2:
                        processed.add(message.offset)
                        await message.ack()
                    else:
                        await message.nack()  # to the dead-letter topic, at once
                        processed.add(message.offset)
                    if message.offset >= until:
                        return

        for i in range(2):
            await bus.publish(topic, b"%d" % i)
        async with observer(kafka, topic) as asking:
            for attempt in sweep(when):
                await bus.publish(topic, b"x")
                await attempt.run(consume(attempt.nth + 1))
                committed = await asking.committed(TopicPartition(topic, 0)) or 0
                assert set(range(committed)) <= processed
    assert processed == set(range(attempt.nth + 2))
