"""aiokafka: ``async for``, ``send`` and ``flush``, with the bus's ``msight`` header; idempotent, acknowledged by all."""

from __future__ import annotations

import time

from aiokafka import AIOKafkaProducer

from benchmarks.ceilings.kafka import SESSION, GetManySubscriber, servers
from msight_bus.bench.sides import Tally, Target

_ROOM = 1024
"""Bytes of a batch in addition to the payload."""


class IterSubscriber(GetManySubscriber):
    """Receives with ``async for record in consumer``."""

    async def receive(self, tally: Tally) -> None:
        """Count each record."""
        observe = tally.observe
        async for record in self._consumer:
            tally.received += 1
            tally.size += len(record.value)
            if observe is not None:
                observe(record.value)


class SendPublisher:
    """Publishes with ``await producer.send(...)``, without waiting for each acknowledgement, then ``flush``."""

    def __init__(self, batch_bytes: int = 16384) -> None:
        """``batch_bytes``: aiokafka's default is 16 KiB."""
        self._batch_bytes = batch_bytes

    async def open(self, target: Target) -> None:
        """Connect."""
        self._topic = target.topic
        self._sequence = 0
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers(target),
            acks="all",
            enable_idempotence=True,
            max_batch_size=max(self._batch_bytes, target.size + _ROOM),
            max_request_size=64 * 1024 * 1024,
        )
        await self._producer.start()
        await self._producer.partitions_for(target.topic)

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        self._sequence += 1
        meta = b"%016x%016x%016x" % (SESSION, self._sequence, time.time_ns())
        await self._producer.send(self._topic, payload, headers=[("msight", meta)])

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in order."""
        for _ in range(count):
            await self.send(payload)

    async def flush(self) -> None:
        """Wait until all messages are acknowledged."""
        await self._producer.flush()

    async def close(self) -> None:
        """Disconnect."""
        await self._producer.stop()
