"""A client that creates and changes Kafka topics."""

from __future__ import annotations

from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from msight_bus.backends.kafka.client import client_options


@asynccontextmanager
async def administering(kafka):
    client = AIOKafkaAdminClient(**client_options(kafka.settings()))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def make(kafka, topic, partitions=1, **config):
    async with administering(kafka) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config)])


async def committed(kafka, topic, group):
    """Return the group's committed offset of partition 0."""
    async with AIOKafkaConsumer(**client_options(kafka.settings()), group_id=group) as other:
        return await other.committed(TopicPartition(topic, 0))
