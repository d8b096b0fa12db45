"""Producers and group members with confluent-kafka, which uses librdkafka."""

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
"""Group protocols; in the second, the broker assigns partitions."""


def options(kafka: Backend) -> dict[str, Any]:
    """Return the common options of clients of librdkafka."""
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
    """Return the first records of a topic."""

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
    """A group member that polls in a thread and commits in the background, as is usual.

    Attributes:
        partitions: assigned partitions.
    """

    def __init__(
        self, kafka: Backend, topic: str, group_id: str, seen: Callable[[Message], None] | None = None, **more: Any
    ) -> None:
        """``seen``: called in the member's thread for each record before its commit."""
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
                    pass  # the partition was revoked meanwhile
            self.partitions = sorted(each.partition for each in self._consumer.assignment())
        if self._leaves:
            self._consumer.close()

    async def stop(self, *, leaves: bool = True) -> None:
        """End the member; without ``leaves``, it does not leave the group."""
        self._leaves = self._leaves and leaves
        self._stopped.set()
        await asyncio.to_thread(self.join)
