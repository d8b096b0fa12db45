"""aiokafka's admin client, made to ask another broker where one is away. Like `client.py` it touches private attributes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.metadata import MetadataRequest

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.aiokafka_compat import Credentials, take_over
from msight_bus.backends.kafka.errors import REFUSED, translate


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """What the cluster says of one topic.

    Attributes:
        partitions: how many it has with a leader each; 0 if it does not exist, or is being made.
        replicas: of its least replicated partition.
        brokers: in the cluster.
    """

    partitions: int
    replicas: int
    brokers: int


class Admin(AIOKafkaAdminClient):
    """The library asks one broker, at random or because it is the controller, even if that broker is down."""

    def __init__(self, credentials: Credentials, **options: Any) -> None:
        super().__init__(**options)
        take_over(self._client, credentials)

    async def metadata(self, topics: list[str], within: float | None = None) -> Any:
        """Metadata of the cluster and of ``topics``, from a broker that answers within ``within`` seconds.

        Raises:
            KafkaError: none answered.
        """
        # Asking must not create them, as it does by default.
        return await self._ask(MetadataRequest(topics, allow_auto_topic_creation=False), within=within)

    async def topic(self, name: str) -> TopicMetadata:
        """What the cluster says of one topic.

        Raises:
            KafkaError: no answer.
            AuthenticationError: it may not be described.
        """
        response = await self.metadata([name])
        brokers = len(response.brokers)
        for entry in response.topics:
            error_code, found, partitions = entry[0], entry[1], entry[-1]
            if found == name and error_code == 0 and all(partition[2] >= 0 for partition in partitions):
                return TopicMetadata(len(partitions), min(len(partition[3]) for partition in partitions), brokers)
            if found == name and kafka_errors.for_code(error_code) in REFUSED:
                raise translate(kafka_errors.for_code(error_code)(name), "administer")
        return TopicMetadata(0, 0, brokers)

    async def _send_request(self, request: Any, node_id: int | None = None) -> Any:
        return await (self._ask(request) if node_id is None else super()._send_request(request, node_id))

    async def _send_to_controller(self, request: Any) -> Any:
        """The controller first; brokers of a KRaft cluster pass on to it what others are asked (KIP-590)."""
        controller = self._client.cluster.controller
        return await self._ask(request, first=None if controller is None else controller.nodeId)

    async def _ask(self, request: Any, *, first: int | None = None, within: float | None = None) -> Any:
        client = self._client
        if client._sync_task is not None and client._sync_task.done():  # an error has ended the renewal of metadata
            client._sync_task = asyncio.create_task(client._md_synchronizer())
        nodes = [broker.nodeId for broker in client.cluster.brokers()]
        random.shuffle(nodes)
        nodes.sort(key=lambda node: node != first)
        problem: Exception = kafka_errors.NodeNotReadyError("No broker is known.")
        for node, share in in_turn(nodes, within or client._request_timeout_ms / 1000):
            try:
                async with loop_timeout(share):
                    return await client.send(node, request)
            except TimeoutError:
                client.drop(node)  # it may be the connection that is dead
                problem = kafka_errors.RequestTimedOutError(f"broker {node} did not answer")
            except (kafka_errors.KafkaError, OSError) as error:
                problem = error
        raise problem
