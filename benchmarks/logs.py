"""Topics of Kafka with one partition, made before anyone measures on them."""

from __future__ import annotations

import asyncio

from aiokafka.admin import AIOKafkaAdminClient, NewTopic


class Logs:
    """Makes each topic once."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._made: set[str] = set()

    def make(self, topic: str) -> bool:
        """Make a topic with one partition; tells whether it is new."""
        if topic in self._made:
            return False
        asyncio.run(self._create(topic))
        self._made.add(topic)
        return True

    async def _create(self, topic: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            bounds = {"retention.bytes": "500000000", "segment.bytes": "200000000", "max.message.bytes": "2000000"}
            await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=bounds)])
        finally:
            await admin.close()
