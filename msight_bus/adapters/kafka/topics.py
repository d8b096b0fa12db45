"""Which topics exist, how many partitions they have and what they take; creating them on first use."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from msight_bus.adapters.kafka.client import explain, topic_partitions
from msight_bus.errors import ConnectionLostError, TopicError
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
"""Kafka's default ``message.max.bytes`` (broker configuration reference)."""


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that exists.

    Attributes:
        partitions: how many it has.
        max_message_bytes: its ``max.message.bytes``.
    """

    partitions: int
    max_message_bytes: int


class TopicDirectory:
    """Topics known to exist. Each is looked up once."""

    def __init__(self, settings: BusSettings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._options = options
        self._admin: AIOKafkaAdminClient | None = None
        self._known: dict[str, TopicInfo] = {}
        self._lock = asyncio.Lock()
        self.max_message_bytes = DEFAULT_MAX_MESSAGE_BYTES

    async def open(self) -> None:
        """Connect the admin client and learn the broker's own limit."""
        self._admin = AIOKafkaAdminClient(**self._options)
        try:
            await self._admin.start()
        except KafkaError as error:
            raise explain(error) from error

    def known(self, topic: str) -> TopicInfo | None:
        """What is known without asking."""
        return self._known.get(topic)

    async def ensure(self, topic: str) -> TopicInfo:
        """The topic, created if it has to be.

        Raises:
            TopicError: it does not exist and must not be created, or its name collides with another's.
            ConnectionLostError: Kafka did not answer within ``connect_timeout``.
            AuthenticationError: not permitted.
        """
        info = self._known.get(topic)
        if info is not None:
            return info
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout), self._lock:
                return await self._look_up(topic)
        except TimeoutError:
            raise ConnectionLostError(
                f"Kafka did not answer about topic {topic!r} within {self._settings.limits.connect_timeout:g} s "
                "(MSIGHT_CONNECT_TIMEOUT)."
            ) from None
        except KafkaError as error:
            raise explain(error) from error

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has now."""
        return await topic_partitions(self._admin, topic)

    async def _look_up(self, topic: str) -> TopicInfo:
        if topic in self._known:
            return self._known[topic]
        partitions = await topic_partitions(self._admin, topic)
        if not partitions:
            await self._create(topic)
            while not (partitions := await topic_partitions(self._admin, topic)):
                await asyncio.sleep(0.02)  # its leaders are being elected; the caller's deadline ends this
        info = TopicInfo(partitions, await self._max_message_bytes(topic))
        self._known[topic] = info
        return info

    async def _create(self, topic: str) -> None:
        assert self._admin is not None
        kafka = self._settings.kafka
        for other in await self._admin.list_topics():
            if other != topic and other.replace(".", "_") == topic.replace(".", "_"):
                raise TopicError(
                    f"Kafka cannot tell the topics {topic!r} and {other!r} apart in its metrics, where '.' becomes '_', and "
                    "accepts only one of them; choose another name.",
                    topic=topic,
                )
        if not kafka.create_topics:
            raise TopicError(
                f"The topic {topic!r} does not exist and MSIGHT_KAFKA_CREATE_TOPICS is false; create it, or set the "
                "variable to true.",
                topic=topic,
            )
        count = 1 if topic.startswith("_") else kafka.partitions
        if kafka.replication is None:
            new = NewTopic(topic, count, -1, replica_assignments={})
        else:
            new = NewTopic(topic, count, kafka.replication)
        response = await self._admin.create_topics([new])
        for entry in response.topic_errors:
            error = for_code(entry[1])
            if entry[1] and error is not TopicAlreadyExistsError:
                detail = entry[2] if len(entry) > 2 else ""
                raise explain(error(detail or topic))
        logger.info("Created topic %s with %d partitions.", topic, count)

    async def _max_message_bytes(self, topic: str) -> int:
        assert self._admin is not None
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": ""})
        for response in await self._admin.describe_configs([resource]):
            for entry in response.resources:
                for option in entry[4]:
                    if option[0] == "max.message.bytes":
                        return int(option[1])
        return DEFAULT_MAX_MESSAGE_BYTES  # not permitted to ask, or a broker that does not say

    async def close(self) -> None:
        """Close the admin client."""
        admin, self._admin = self._admin, None
        if admin is not None:
            await asyncio.wait((asyncio.ensure_future(admin.close()),), timeout=2.0)
