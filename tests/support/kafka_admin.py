"""A client that creates and changes Kafka topics."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from msight_bus.backends.kafka.client import client_options


class Admin(AIOKafkaAdminClient):
    """Waits until the broker knows the topics that the controller has created.

    Attributes:
        waits: set to false where the new topics can be deleted at once.
    """

    waits = True

    async def create_topics(self, new_topics, *arguments, **options):
        response = await super().create_topics(new_topics, *arguments, **options)
        created = [name for name, error, *_ in response.topic_errors if not error]
        while self.waits and created and not all(map(_is_usable, await self.describe_topics(created))):
            await asyncio.sleep(0.02)
        return response


def _is_usable(topic):
    return not topic["error_code"] and not any(partition["error_code"] for partition in topic["partitions"])


@asynccontextmanager
async def administering(kafka):
    client = Admin(**client_options(kafka.settings()))
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
