"""Create topics of Kafka with one partition before a measurement."""

from __future__ import annotations

import asyncio

from aiokafka.admin import AIOKafkaAdminClient, NewTopic


class Logs:
    """Creates each topic once."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._made: set[str] = set()

    def make(self, *topics: str) -> bool:
        """Create topics with one partition; return whether any is new."""
        new = [topic for topic in topics if topic not in self._made]
        if new:
            asyncio.run(self._create(new))
            self._made.update(new)
        return bool(new)

    async def _create(self, topics: list[str]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            bounds = {"retention.bytes": "500000000", "segment.bytes": "200000000", "max.message.bytes": "2000000"}
            await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=bounds) for topic in topics])
        finally:
            await admin.close()
