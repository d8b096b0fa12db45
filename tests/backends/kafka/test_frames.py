"""Answers of any size, and bytes of a peer that is no broker."""

from __future__ import annotations

import asyncio
import random
import tracemalloc

import pytest
from aiokafka.admin import NewTopic

import msight_bus
from msight_bus import ConnectionLostError
from tests.support.kafka_admin import administering
from tests.support.listeners import fake
from tests.support.servers import variables
from tests.support.talking import settings_of

ROOM = 10_000_000


@pytest.mark.parametrize("size", [0, 60_000, 66_000, 200_000, 262_000, 5_000_000])
async def test_a_message_of_any_size_comes_through(kafka, topic, size):
    payload = random.Random(size).randbytes(size)
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": f"{ROOM}"})])
    async with kafka.connect(MSIGHT_MAX_MESSAGE_BYTES=f"{ROOM}") as bus, bus.subscribe(topic) as messages:
        for _ in range(3):
            await bus.publish(topic, payload)
        for _ in range(3):
            assert (await anext(messages)).payload == payload


@pytest.mark.parametrize(
    "answer", [b"\x7f\xff\xff\xff" + bytes(70_000), b"\xff\xff\xff\xff", bytes(8), b"HTTP/1.1 400"]
)
async def test_a_peer_that_is_no_broker_takes_no_memory(answer):
    async def peer(reader, writer):
        writer.write(answer)
        await reader.read()

    async with fake(peer) as way:
        tracemalloc.start()
        try:
            with pytest.raises(ConnectionLostError):
                async with asyncio.timeout(20):
                    async with msight_bus.connect(
                        settings_of(variables("kafka", way.port), MSIGHT_CONNECT_TIMEOUT="0.5")
                    ):
                        pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 32_000_000
