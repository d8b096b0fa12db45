"""confluent-kafka (librdkafka): ``produce`` with a linger, ``consume`` of lists; idempotent, acknowledged by all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from benchmarks.ceilings.kafka import FETCH_BYTES, SESSION, servers
from msight_bus.bench.sides import Tally, Target

_LIST = 2000
_WITHIN = 30.0


class ProducePublisher:
    """Publishes with ``producer.produce(...)`` into the library's queue, then ``flush``."""

    def __init__(self, linger_ms: float = 5.0) -> None:
        """``linger_ms``: milliseconds for which a batch waits for more records; the library's default is 5."""
        self._linger_ms = linger_ms
        self._refused: list[Any] = []

    async def open(self, target: Target) -> None:
        """Connect."""
        self._topic = target.topic
        self._sequence = 0
        options = {
            "bootstrap.servers": servers(target),
            "enable.idempotence": True,
            "linger.ms": self._linger_ms,
            "message.max.bytes": FETCH_BYTES,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: self._refused.append(error),
        }
        self._producer = Producer(options)
        self._producer.list_topics(target.topic, timeout=_WITHIN)

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        self._sequence += 1
        meta = b"%016x%016x%016x" % (SESSION, self._sequence, time.time_ns())
        while True:
            try:
                self._producer.produce(self._topic, payload, partition=0, headers=[("msight", meta)])
            except BufferError:  # the queue of the library is full
                self._producer.poll(0.005)
            else:
                return

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in order."""
        for _ in range(count):
            await self.send(payload)

    async def flush(self) -> None:
        """Wait until all messages are acknowledged."""
        if self._producer.flush(_WITHIN) or self._refused:
            raise KafkaException(*self._refused[:1])

    async def close(self) -> None:
        """Do nothing: the destructor disconnects."""
        del self._producer


class ConsumeSubscriber:
    """Receives with ``consumer.consume(...)`` in a thread, without group and commits."""

    async def open(self, target: Target) -> None:
        """Connect and assign."""
        self._over = False
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers(target),
                "group.id": "benchmark",  # required
                "enable.auto.commit": False,
                "fetch.message.max.bytes": FETCH_BYTES,
            }
        )
        where = TopicPartition(target.topic, 0)
        _, end = self._consumer.get_watermark_offsets(where, timeout=_WITHIN)
        where.offset = OFFSET_BEGINNING if target.from_start else end
        self._consumer.assign([where])

    async def receive(self, tally: Tally) -> None:
        """Count each message, in a thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._count, tally)

    def _count(self, tally: Tally) -> None:
        observe, consume = tally.observe, self._consumer.consume
        while not self._over:
            # consume() waits until the list is full or the timeout has passed, so wait for one, then take the others.
            for message in consume(1, 0.1) + consume(_LIST, 0):
                if message.error() is not None:
                    raise KafkaException(message.error())
                payload = message.value()
                tally.received += 1
                tally.size += len(payload)
                if observe is not None:
                    observe(payload)

    async def close(self) -> None:
        """Disconnect after the thread has ended."""
        self._over = True
        await asyncio.sleep(0.15)
        self._consumer.close()
