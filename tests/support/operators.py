"""Administer a Kafka cluster with confluent-kafka's admin client."""

from __future__ import annotations

import asyncio
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.support.brokers import Backend
from tests.support.librdkafka import options

AUTHORIZING = [
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found=true",
]
"""Configuration of a broker with authorization, which `Operator.deny` needs."""

_WITHIN = 20.0
_EVERYBODY = "User:ANONYMOUS"


class Operator:
    """An administrator of one cluster. Each method returns after the cluster has applied the change."""

    def __init__(self, kafka: Backend) -> None:
        self._client = AdminClient(options(kafka))

    def close(self) -> None:
        """Close the client."""
        del self._client

    async def create(self, topic: str, partitions: int = 1, **config: str) -> None:
        """Create a topic, after a topic of the same name was deleted."""
        new = NewTopic(topic, partitions, 1, config={name.replace("_", "."): value for name, value in config.items()})
        while True:
            try:
                await self._done(self._client.create_topics, [new])
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                await asyncio.sleep(0.02)  # the old topic is still being deleted
            else:
                break
        await self._until_partitions(topic, partitions)

    async def delete(self, topic: str) -> None:
        """Delete a topic."""
        await self._done(self._client.delete_topics, [topic])

    async def add_partitions(self, topic: str, total: int) -> None:
        """Increase the number of partitions to ``total``."""
        await self._done(self._client.create_partitions, [NewPartitions(topic, total)])
        await self._until_partitions(topic, total)

    async def set(self, topic: str, name: str, value: str) -> None:
        """Change an option of a topic."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        await self._done(self._client.incremental_alter_configs, [resource])

    async def delete_records(self, topic: str, before: dict[int, int]) -> None:
        """Delete the records below an offset of each partition, as retention does."""
        offsets = [TopicPartition(topic, partition, offset) for partition, offset in before.items()]
        await self._done(self._client.delete_records, offsets)

    async def deny(self, kind: str, name: str, operation: str) -> None:
        """Deny a permission to all users: ``kind`` is topic or group, ``operation`` read, write or describe."""
        await self._done(self._client.create_acls, [AclBinding(*self._acl(kind, name, operation))])

    async def allow(self, kind: str, name: str, operation: str) -> None:
        """Permit an operation to all users while another one is denied: a resource with any ACL permits nothing else."""
        acl = (*self._acl(kind, name, operation)[:-1], AclPermissionType.ALLOW)
        await self._done(self._client.create_acls, [AclBinding(*acl)])

    async def permit(self, kind: str, name: str, operation: str) -> None:
        """Remove the denial."""
        await self._done(self._client.delete_acls, [AclBindingFilter(*self._acl(kind, name, operation))])

    @staticmethod
    def _acl(kind: str, name: str, operation: str) -> tuple[Any, ...]:
        what, to = ResourceType[kind.upper()], AclOperation[operation.upper()]
        return what, name, ResourcePatternType.LITERAL, _EVERYBODY, "*", to, AclPermissionType.DENY

    async def _until_partitions(self, topic: str, total: int) -> None:
        async with asyncio.timeout(_WITHIN):
            while True:
                found = (await asyncio.to_thread(self._client.list_topics, topic, _WITHIN)).topics.get(topic)
                if found is not None and found.error is None and len(found.partitions) == total:
                    return
                await asyncio.sleep(0.02)

    async def _done(self, do: Any, what: list[Any]) -> None:
        def run() -> None:
            for future in do(what).values():
                future.result(_WITHIN)

        await asyncio.to_thread(run)
