"""Where a subscription begins, as offsets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from aiokafka import AIOKafkaConsumer, TopicPartition

from msight_bus.adapters.base import Start


def check_start(start: Start, topic: str, partitions: int) -> None:
    """Check the partitions that a start names.

    Raises:
        ValueError: the topic has no such partition.
    """
    if isinstance(start, Mapping):
        for partition in start:
            if partition >= partitions:
                raise ValueError(
                    f"start names partition {partition}, and topic {topic!r} has {partitions} partitions, 0 to {partitions - 1}."
                )


async def resolve(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """The offset in each partition at which ``start`` begins.

    Raises:
        KafkaError: the broker did not say.
    """
    if not partitions:
        return {}
    if start == "earliest":
        return dict(await consumer.beginning_offsets(partitions))
    # The end is asked for first: what is published between two questions must lie behind the answer.
    ends: dict[TopicPartition, int] = dict(await consumer.end_offsets(partitions))
    if isinstance(start, datetime):
        moment = max(0, int(start.timestamp() * 1000))  # Kafka has a meaning of its own for -1 and -2
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, moment))
        return {where: at.offset if (at := found.get(where)) is not None else ends[where] for where in partitions}
    if isinstance(start, Mapping):
        return {where: start.get(where.partition, ends[where]) for where in partitions}
    return ends
