"""Kafka: aiokafka's ``getmany``, and batches that are filled explicitly, with aiokafka's wire protocol."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from msight_bus.bench.sides import Tally, Target

SESSION = 0x1234_5678_9ABC_DEF0
FETCH_BYTES = 2_000_000
"""Bytes of a partition in one response: ``max.message.bytes`` of the topics, as the bus requests."""


def servers(target: Target) -> str:
    """Bootstrap servers."""
    return ",".join(map(str, target.settings.kafka.servers))


class HandBatchPublisher:
    """``create_batch``, ``append``, ``send_batch``; idempotent, acknowledged by all; one batch fills during a send."""

    def __init__(self, batch_bytes: int = 256 * 1024) -> None:
        """``batch_bytes``: the default of the bus."""
        self._batch_bytes = batch_bytes

    async def open(self, target: Target) -> None:
        """Connect."""
        self._topic = target.topic
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers(target),
            acks="all",
            enable_idempotence=True,
            max_batch_size=max(self._batch_bytes, target.size + 1024),
            max_request_size=64 * 1024 * 1024,
        )
        await self._producer.start()
        await self._producer.partitions_for(target.topic)
        self._sequence = 0
        self._batch: Any = self._producer.create_batch()
        self._sent: asyncio.Future[Any] | None = None

    async def _hand_over(self) -> None:
        batch, self._batch = self._batch, self._producer.create_batch()
        batch.close()
        self._sent = await self._producer.send_batch(batch, self._topic, partition=0)

    async def send(self, payload: bytes) -> None:
        """Send one message at once."""
        await self.send_many(payload, 1)
        await self._hand_over()

    async def send_many(self, payload: bytes, count: int) -> None:
        """Fill batches."""
        for _ in range(count):
            self._sequence += 1
            now = time.time_ns()
            headers = [("msight", b"%016x%016x%016x" % (SESSION, self._sequence, now))]
            while self._batch.append(timestamp=now // 1_000_000, key=None, value=payload, headers=headers) is None:
                await self._hand_over()

    async def flush(self) -> None:
        """Wait until all messages are acknowledged."""
        await self._hand_over()
        await self._producer.flush()
        if self._sent is not None:
            await self._sent

    async def close(self) -> None:
        """Disconnect."""
        await self._producer.stop()


class GetManySubscriber:
    """``getmany``, all partitions, no group."""

    def __init__(self, max_records: int = 2000, fetch_bytes: int = FETCH_BYTES) -> None:
        """``max_records``: largest list; ``fetch_bytes``: approximate size of a response."""
        self._max_records, self._fetch_bytes = max_records, fetch_bytes

    async def open(self, target: Target) -> None:
        """Connect and assign."""
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=servers(target),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            max_partition_fetch_bytes=self._fetch_bytes,
        )
        await self._consumer.start()
        count = len(await self._consumer._client._wait_on_metadata(target.topic))
        partitions = [TopicPartition(target.topic, n) for n in range(count)]
        self._consumer.assign(partitions)
        if target.from_start:
            await self._consumer.seek_to_beginning()
        else:
            await self._consumer.seek_to_end()

    async def receive(self, tally: Tally) -> None:
        """Count each record."""
        observe = tally.observe
        while True:
            fetched = await self._consumer.getmany(timeout_ms=1000, max_records=self._max_records)
            for records in fetched.values():
                for record in records:
                    tally.received += 1
                    tally.size += len(record.value)
                    if observe is not None:
                        observe(record.value)

    async def close(self) -> None:
        """Disconnect."""
        await self._consumer.stop()
