"""Other programs on Kafka: producers and members of a group with confluent-kafka, which is librdkafka."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer

from tests.support.brokers import Backend

CLASSIC = {"partition.assignment.strategy": "roundrobin", "session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
CONSUMER = {"group.protocol": "consumer"}
PROTOCOLS = {"classic": CLASSIC, "KIP-848": CONSUMER}
"""In the second, the broker assigns."""


def options(kafka: Backend) -> dict[str, Any]:
    """The options of any client of librdkafka."""
    return {"bootstrap.servers": ",".join(map(str, kafka.settings().kafka.servers)), "log_level": 0}


async def produce(kafka: Backend, topic: str, *records: dict[str, Any], **more: Any) -> None:
    """Publish records, each the arguments of ``Producer.produce``, and wait until all are acknowledged."""
    failures: list[Any] = []

    def acknowledged(error: Any, _: Message) -> None:
        if error is not None:
            failures.append(error)

    def run() -> None:
        producer = Producer({**options(kafka), **{name.replace("_", "."): value for name, value in more.items()}})
        for record in records:
            producer.produce(topic, on_delivery=acknowledged, **record)
        left = producer.flush(30)
        assert not left, f"{left} records are not acknowledged"

    await asyncio.to_thread(run)
    if failures:
        raise KafkaException(failures[0])


async def read(kafka: Backend, topic: str, count: int) -> list[Message]:
    """The first records of a topic."""

    def run() -> list[Message]:
        consumer = Consumer({**options(kafka), "group.id": f"{topic}.reader", "auto.offset.reset": "earliest"})
        consumer.subscribe([topic])
        found: list[Message] = []
        try:
            while len(found) < count:
                found += [message for message in consumer.consume(count - len(found), 0.2) if message.error() is None]
        finally:
            consumer.close()
        return found

    return await asyncio.to_thread(run)


class Member(threading.Thread):
    """A member of a group that polls in a thread, and commits what it has seen like most such programs: in the background.

    Attributes:
        partitions: that it owns.
    """

    def __init__(
        self, kafka: Backend, topic: str, group_id: str, seen: Callable[[Message], None] | None = None, **more: Any
    ) -> None:
        """``seen`` is called for each record in the member's thread, before the record can be committed."""
        super().__init__(daemon=True, name=f"member of {group_id}")
        self._consumer = Consumer(
            {**options(kafka), "group.id": group_id, "client.id": "a", "enable.auto.offset.store": False, **more}
        )
        self._consumer.subscribe([topic])
        self._seen = seen
        self._leaves = True
        self._stopped = threading.Event()
        self.partitions: list[int] = []

    def run(self) -> None:
        while not self._stopped.is_set():
            message = self._consumer.poll(0.02)
            if message is not None and message.error() is None:
                if self._seen is not None:
                    self._seen(message)
                try:
                    self._consumer.store_offsets(message)
                except KafkaException:
                    pass  # the partition was taken away meanwhile
            self.partitions = sorted(each.partition for each in self._consumer.assignment())
        if self._leaves:
            self._consumer.close()

    async def stop(self, *, leaves: bool = True) -> None:
        """End the member; without ``leaves`` its group hears nothing of it."""
        self._leaves = self._leaves and leaves
        self._stopped.set()
        await asyncio.to_thread(self.join)
