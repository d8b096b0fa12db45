"""The connections to the brokers of a cluster, and its metadata."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import PartitionMetadata

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.aiokafka_compat.connection import Connection
from msight_bus.backends.kafka.errors import UnreachableBrokerError

logger = logging.getLogger("msight_bus")

Credentials = Callable[[], dict[str, Any]]
"""Returns aiokafka's arguments ``ssl_context`` and ``sasl_...`` for a new connection."""

TopicSeen = Callable[[str, dict[int, bool]], None]
"""Called for each topic in a metadata response, with its partitions and whether each has a leader; empty if it does not exist."""


def read_partitions(partitions: Iterable[Any]) -> dict[int, bool]:
    """Return the partitions of a topic in a metadata response, and whether each has a leader."""
    return {number: leader >= 0 for _, number, leader, *_ in partitions}


class Client(AIOKafkaClient):
    """Connections to a cluster, and its metadata.

    Differs from aiokafka's client, in which metadata requests create topics, a connection stays open after its metadata request
    timed out, the bootstrap servers are never asked again, certificates are read once, connecting to one broker blocks
    connecting to the others, and a cancelled `bootstrap` leaks a connection.

    Attributes:
        on_update: called after each update of the metadata.
    """

    def __init__(self, credentials: Credentials, *, seen: TopicSeen | None = None, **options: Any) -> None:
        """
        Args:
            credentials: called for each new connection.
            seen: called for each topic in a metadata response.
            options: keyword arguments of ``AIOKafkaClient``.
        """
        super().__init__(**options)
        self._sync_task: asyncio.Task[None] | None = None
        self._credentials = credentials
        self._seen = seen
        self.on_update: Callable[[], None] = lambda: None
        self._problems: dict[Any, str] = {}
        self._connecting: dict[Any, asyncio.Lock] = {}

    # -- metadata

    async def bootstrap(self) -> None:
        """Get the cluster's metadata from the first bootstrap server that responds.

        Raises:
            KafkaConnectionError: no bootstrap server responded.
        """
        metadata = await self._ask_bootstrap_servers(MetadataRequest([]))
        if metadata is None:
            servers = ", ".join(f"{host}:{port}" for host, port, _ in self.hosts)
            raise kafka_errors.KafkaConnectionError(f"no bootstrap server responded ({servers})")
        self.cluster.update_metadata(metadata)
        if self._sync_task is None:
            self._sync_task = asyncio.create_task(self._md_synchronizer())

    def leader(self, where: TopicPartition) -> int | None:
        """Return the id of the broker that leads a partition; ``None`` without a leader or for an unknown partition."""
        node = self.cluster.leader_for_partition(where)
        return None if node is None or node < 0 else int(node)

    def partitions(self, topic: str) -> set[int]:
        """Return the numbers of a topic's partitions; empty for an unknown topic."""
        return set(self.cluster.partitions_for_topic(topic) or ())

    @property
    def background_task(self) -> asyncio.Task[None]:
        """The task that updates the metadata. aiokafka does not restart it after an error."""
        assert self._sync_task is not None
        return self._sync_task

    def track(self, topic: str) -> None:
        """Include a topic in each metadata request."""
        self._topics.add(topic)

    def untrack(self, topic: str) -> None:
        """Leave a topic out of metadata requests again."""
        self._topics.discard(topic)

    async def add_metadata(self, topic: str) -> bool:
        """Add the metadata of one topic to the known metadata; return whether a broker responded.

        An update requests all topics: for a bus that publishes on one new topic after the other, its time grows quadratically.
        """
        try:
            response = await self.ask(MetadataRequest([topic], allow_auto_topic_creation=False))
        except (kafka_errors.KafkaError, OSError):
            return False
        for code, name, _, partitions in response.topics:
            if name == topic and not code:
                self.cluster._partitions[topic] = {
                    number: PartitionMetadata(topic, number, leader, replicas, isr, error)
                    for error, number, leader, replicas, isr, *_ in partitions
                }
        return True

    async def update_metadata(self) -> bool:
        """Update the metadata and return whether a broker responded."""
        if self._sync_task is not None and self._sync_task.done():  # ended by an error
            self._sync_task = asyncio.create_task(self._md_synchronizer())
        return bool(await self.force_metadata_update())

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
        metadata = await self._ask_brokers(request) or await self._ask_bootstrap_servers(request)
        if metadata is None:
            logger.debug("No metadata: no broker and no bootstrap server responded.")
            cluster_metadata.failed_update(None)
            return False
        cluster_metadata.update_metadata(metadata)
        self.on_update()
        if self._report(metadata):
            await asyncio.sleep(self._retry_backoff)  # callers that wait for the topic retry at once
        return True

    async def _ask_brokers(self, request: Any) -> Any:
        for node in self._shuffled_nodes():
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                logger.debug("No metadata from broker %s: %r", node, error)
                connection.abort()
            else:
                if metadata.brokers:
                    return metadata
        return None

    async def _ask_bootstrap_servers(self, request: Any) -> Any:
        """Send a metadata request over a new connection: the addresses of the brokers may have changed."""
        for (host, port, _), share in in_turn(self.hosts, self.request_timeout):
            connection = self._new_connection(host, port)
            try:
                async with asyncio.timeout(share):
                    await connection.connect()
                    metadata = await connection.send(request)
                if metadata.brokers:
                    return metadata
            except (OSError, TimeoutError, kafka_errors.KafkaError) as error:
                logger.debug("No metadata from the bootstrap server %s:%s: %r", host, port, error)
            finally:
                connection.abort()
        return None

    def _report(self, metadata: Any) -> bool:
        """Call ``seen`` for each topic and return whether one does not exist."""
        missing = False
        for code, topic, *_, partitions in metadata.topics:
            error = kafka_errors.for_code(code)
            if error not in (kafka_errors.NoError, kafka_errors.UnknownTopicOrPartitionError):
                continue
            missing = missing or error is not kafka_errors.NoError
            if self._seen is not None:
                self._seen(topic, read_partitions(partitions) if error is kafka_errors.NoError else {})
        return missing

    def _shuffled_nodes(self) -> list[Any]:
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        return random.sample(nodes, len(nodes))

    # -- connections

    def _new_connection(self, host: str, port: int) -> Connection:
        for name, value in self._credentials().items():
            setattr(self, f"_{name}", value)
        return Connection(
            host,
            port,
            client_id=self._client_id,
            request_timeout_ms=self._request_timeout_ms,
            ssl_context=self._ssl_context,
            security_protocol=self._security_protocol,
            on_close=self._on_connection_closed,
            max_idle_ms=self._connections_max_idle_ms,
            sasl_mechanism=self._sasl_mechanism,
            sasl_plain_username=self._sasl_plain_username,
            sasl_plain_password=self._sasl_plain_password,
            sasl_oauth_token_provider=self._sasl_oauth_token_provider,
        )

    async def _get_conn(
        self, node_id: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT, no_hint: bool = False
    ) -> Any:
        place = (node_id, group)
        async with self._connecting.setdefault(place, asyncio.Lock()):
            connection = self._conns.get(place)
            if connection is not None and connection.connected():
                return connection
            self.drop(*place)  # closed by the broker; aiokafka may not have noticed
            broker = self.cluster.broker_metadata(node_id)
            if broker is None:
                self._problems[node_id] = f"broker {node_id} is not in the cluster's metadata"
                self.force_metadata_update()
                return None
            connection = self._new_connection(broker.host, broker.port)
            try:
                await connection.connect()
            except (OSError, TimeoutError, kafka_errors.KafkaError) as error:
                reason = str(error) or type(error).__name__
                self._problems[node_id] = f"broker {node_id} at {broker.host}:{broker.port}: {reason}"
                logger.debug("Cannot connect to %s.", self._problems[node_id])
                self.force_metadata_update()
                return None
            self._conns[place] = connection
            return connection

    def is_connected(self, node: int) -> bool:
        """Return whether the connection to a broker is open."""
        connection = self._conns.get((node, ConnectionGroup.DEFAULT))
        return connection is not None and connection.connected()

    async def connect(self, node: int) -> None:
        """Connect to a broker.

        Raises:
            UnreachableBrokerError: the broker cannot be reached.
        """
        if await self._get_conn(node) is None:
            raise UnreachableBrokerError(self._problems.get(node, f"broker {node}"))

    def drop(self, node: Any, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> None:
        """Close the connection to a broker; the next request opens another."""
        connection = self._conns.pop((node, group), None)
        if connection is not None:
            connection.abort()

    # -- requests

    async def send(self, node_id: Any, request: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> Any:
        """Send a request to a broker and return the response.

        Raises:
            UnreachableBrokerError: the broker cannot be reached.
            KafkaError: the broker did not respond.
        """
        connection = self._conns.get((node_id, group))
        if connection is None or not connection.connected():
            connection = await self._get_conn(node_id, group=group)
        if connection is None:
            raise UnreachableBrokerError(self._problems.get(node_id, f"broker {node_id}"))
        return await connection.write(request)

    def send_now(self, node: int, request: Any) -> asyncio.Future[Any]:
        """Write a request to a connected broker and return the future of the response, a ``KafkaError`` if none arrives.

        Raises:
            KafkaConnectionError: the connection has closed.
        """
        connection: Connection = self._conns[node, ConnectionGroup.DEFAULT]
        return connection.write(request)

    async def ask(
        self, request: Any, *, first: int | None = None, within: float | None = None, shared: bool = False
    ) -> Any:
        """Send a request to one broker after the other and return the first response.

        Args:
            request: a request that any broker can answer.
            first: id of the first broker; the others follow in random order.
            within: seconds for all brokers together; default: the request timeout.
            shared: whether to use the connections that carry records; these stay open if a broker does not respond.

        Raises:
            KafkaError: no broker responded.
        """
        group = ConnectionGroup.DEFAULT if shared else ConnectionGroup.COORDINATION
        loop = asyncio.get_running_loop()
        end = loop.time() + (within or self.request_timeout)
        problem: Exception = kafka_errors.NodeNotReadyError("No broker is known.")
        while True:
            lost = False
            nodes = sorted(self._shuffled_nodes(), key=lambda node: bool(node != first))
            for node, share in in_turn(nodes, end - loop.time()):
                try:
                    async with loop_timeout(share):
                        return await self.send(node, request, group=group)
                except (TimeoutError, asyncio.CancelledError) as error:  # cancelled: also at the caller's deadline
                    if not shared:
                        self.drop(node, group)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    problem = kafka_errors.RequestTimedOutError(f"broker {node} did not respond")
                except (kafka_errors.KafkaError, OSError) as error:
                    problem = error
                    lost = lost or isinstance(error, kafka_errors.KafkaConnectionError)
            if not lost or loop.time() >= end:
                raise problem
            await asyncio.sleep(self._retry_backoff)  # a concurrent request has dropped the connection

    @property
    def request_timeout(self) -> float:
        """Deadline in seconds for the response of a broker."""
        return float(self._request_timeout_ms / 1000)

    async def aclose(self) -> None:
        """Abort the connections: aiokafka's ``close`` can wait for a broker that does not respond."""
        syncing, self._sync_task = self._sync_task, None
        if syncing is not None:
            await end_tasks([syncing])
        for connection in list(self._conns.values()):
            connection.abort()
        await asyncio.wait((asyncio.ensure_future(self.close()),), timeout=2.0)


async def end_tasks(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks until all have ended; repeated, because aiokafka's tasks can swallow a cancellation."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for _ in range(50):
        if not alive:
            return
        for task in alive:
            task.cancel()
        await asyncio.sleep(0)
        alive = [task for task in alive if not task.done()]
