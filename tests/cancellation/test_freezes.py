"""Kafka hangs at each suspension of a consumer's and a producer's tasks, aiokafka's too: the operation ends as if it had not."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus.backends.kafka import group
from tests.support.rig import own_broker
from tests.support.sweep import watched

FROZEN = 0.4
"""Seconds: longer than a ping and its answer may take, shorter than a session."""

SETTINGS = {
    "MSIGHT_PING_INTERVAL": "0.1",
    "MSIGHT_PONG_TIMEOUT": "0.1",
    "MSIGHT_RECONNECT_MAX": "0.1",
    "MSIGHT_KAFKA_PARTITIONS": "1",
    "MSIGHT_KAFKA_SESSION_TIMEOUT": "5",
    "MSIGHT_CONNECT_TIMEOUT": "20",
    "MSIGHT_PUBLISH_TIMEOUT": "20",
}


async def produce(kafka, topic, numbers):
    async with kafka.connect(**SETTINGS) as bus, bus.publisher(topic) as publisher:
        for number in numbers:
            await publisher.send(b"%d" % number)


async def consume(kafka, topic, numbers):
    async with kafka.connect(**SETTINGS) as bus, bus.subscribe(topic, group_id="g", start="earliest") as messages:
        for number in numbers:
            async with asyncio.timeout(40):
                while int((await anext(messages)).payload) < number:
                    pass  # not committed by the one before, whose commit was not answered
        await messages.commit()


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("frozen", ["producer", "consumer"])
async def test_a_freeze_at_each_suspension(frozen, monkeypatch):
    monkeypatch.setattr(group, "_COMMIT_WITHIN", 10.0)
    with own_broker("kafka") as (broker, kafka):
        await produce(kafka, "t", [0])
        await consume(kafka, "t", [0])
        for nth in range(1, 2000):
            loop = asyncio.get_running_loop()
            thaw = []

            def freeze(loop=loop, thaw=thaw):
                broker.freeze()
                thaw.append(loop.call_later(FROZEN, broker.thaw))

            numbers = [2 * nth, 2 * nth + 1]
            operation = produce(kafka, "t", numbers) if frozen == "producer" else consume(kafka, "t", numbers)
            if frozen == "consumer":
                await produce(kafka, "t", numbers)
            with watched(nth, freeze) as watching:
                try:
                    async with asyncio.timeout(60):
                        await asyncio.create_task(operation)
                finally:
                    broker.thaw()
                    for timer in thaw:
                        timer.cancel()
            if frozen == "producer":
                await consume(kafka, "t", numbers)
            if not watching.happened:
                break
    assert nth > 20
