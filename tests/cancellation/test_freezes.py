"""A broker hangs: Kafka at each suspension of a consumer's and a producer's tasks, and each broker before a drain."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import ConnectionLostError, DrainTimeoutError
from msight_bus.backends.kafka import group
from tests.support.brokers import breakable_broker, make_backend
from tests.support.rig import EVERY, frozen, own_broker
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


@pytest.mark.parametrize("kind", EVERY)
async def test_a_drain_of_a_frozen_broker_ends_at_the_deadline_of_the_drain(kind, topic):
    long = {f"MSIGHT_{name}_TIMEOUT": "600" for name in ("CONNECT", "PUBLISH", "PONG")}
    broker = breakable_broker(kind)
    backend = make_backend(kind, broker)
    async with backend.connect(**long, MSIGHT_PING_INTERVAL="600") as bus, bus.subscribe(topic) as messages:
        await bus.nodes()
        await bus.publish(topic, b"before")
        await anext(messages)
        consumer = asyncio.create_task(anext(messages))
        with frozen(broker):
            publishing = asyncio.create_task(bus.publish(topic, b"not confirmed"))
            await asyncio.sleep(0)  # both begin
            with pytest.raises(DrainTimeoutError):
                await bus.drain(0.5)
        consumer.cancel()
        await asyncio.wait((consumer, publishing))
        if bus.capabilities.acknowledgement:
            with pytest.raises(ConnectionLostError):
                publishing.result()
