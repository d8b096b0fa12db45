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

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.aiokafka_compat.connection import Connection
from msight_bus.backends.kafka.errors import UnreachableBrokerError

logger = logging.getLogger("msight_bus")

Credentials = Callable[[], dict[str, Any]]
"""Returns what a new connection authenticates with: aiokafka's arguments of these names."""

TopicSeen = Callable[[str, int], None]
"""Called with each topic in an answer of the cluster and its number of partitions, 0 if it does not exist."""


class Client(AIOKafkaClient):
    """Connections to a cluster, and its metadata.

    In aiokafka's own client, asking for metadata creates topics; a connection whose metadata request times out stays;
    addresses that no longer answer are never replaced by those that the bootstrap servers give; certificates are read once; a
    connection that cannot be made holds up those to other brokers; and `bootstrap` leaks a connection when it is cancelled.
    """

    def __init__(self, credentials: Credentials, *, seen: TopicSeen | None = None, **options: Any) -> None:
        """``options`` are aiokafka's. ``on_update``, an attribute, is called after each update of the metadata."""
        super().__init__(**options)
        self._sync_task: asyncio.Task[None] | None = None
        self._credentials = credentials
        self._seen = seen
        self.on_update: Callable[[], None] = lambda: None
        self._problems: dict[Any, str] = {}
        self._connecting: dict[Any, asyncio.Lock] = {}

    # -- metadata

    async def bootstrap(self) -> None:
        """Learn the brokers of the cluster from the first bootstrap server that answers.

        Raises:
            KafkaConnectionError: none answers.
        """
        metadata = await self._ask_bootstrap_servers(MetadataRequest([]))
        if metadata is None:
            raise kafka_errors.KafkaConnectionError(f"Unable to bootstrap from {self.hosts}")
        self.cluster.update_metadata(metadata)
        if self._sync_task is None:
            self._sync_task = asyncio.create_task(self._md_synchronizer())

    def leader(self, where: TopicPartition) -> int | None:
        """The broker that leads a partition; ``None`` if there is none, or the partition is not known."""
        node = self.cluster.leader_for_partition(where)
        return None if node is None or node < 0 else int(node)

    def partitions(self, topic: str) -> set[int]:
        """The numbers of a topic's partitions; empty if the topic is not known."""
        return set(self.cluster.partitions_for_topic(topic) or ())

    @property
    def background_task(self) -> asyncio.Task[None]:
        """The task that updates the metadata. aiokafka does not start it again when it ends with an error."""
        assert self._sync_task is not None
        return self._sync_task

    def track(self, topic: str) -> None:
        """Ask for a topic at each update of the metadata."""
        self._topics.add(topic)

    def untrack(self, topic: str) -> None:
        """The reverse of `track`."""
        self._topics.discard(topic)

    async def update_metadata(self) -> bool:
        """Update the metadata; returns whether a broker answered."""
        if self._sync_task is not None and self._sync_task.done():  # an error has ended it
            self._sync_task = asyncio.create_task(self._md_synchronizer())
        return bool(await self.force_metadata_update())

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
        metadata = await self._ask_brokers(request) or await self._ask_bootstrap_servers(request)
        if metadata is None:
            logger.debug("No broker of the cluster and no bootstrap server gives metadata.")
            cluster_metadata.failed_update(None)
            return False
        cluster_metadata.update_metadata(metadata)
        self.on_update()
        if self._report(metadata):
            await asyncio.sleep(self._retry_backoff)  # callers that wait for the topic retry immediately
        return True

    async def _ask_brokers(self, request: Any) -> Any:
        for node in self._shuffled_nodes():
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                logger.debug("Broker %s gives no metadata: %r", node, error)
                connection.abort()
            else:
                if metadata.brokers:
                    return metadata
        return None

    async def _ask_bootstrap_servers(self, request: Any) -> Any:
        """Ask over a new connection: the brokers' addresses may have changed."""
        for (host, port, _), share in in_turn(self.hosts, self.request_timeout):
            connection = self._new_connection(host, port)
            try:
                async with asyncio.timeout(share):
                    await connection.connect()
                    metadata = await connection.send(request)
                if metadata.brokers:
                    return metadata
            except (OSError, TimeoutError, kafka_errors.KafkaError) as error:
                logger.debug("The bootstrap server %s:%s gives no metadata: %r", host, port, error)
            finally:
                connection.abort()
        return None

    def _report(self, metadata: Any) -> bool:
        """Call ``seen`` with each topic; returns whether one does not exist."""
        missing = False
        for code, topic, *_, partitions in metadata.topics:
            error = kafka_errors.for_code(code)
            if error not in (kafka_errors.NoError, kafka_errors.UnknownTopicOrPartitionError):
                continue
            missing = missing or error is not kafka_errors.NoError
            if self._seen is not None:
                self._seen(topic, len(partitions) if error is kafka_errors.NoError else 0)
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
            self.drop(*place)  # the peer has closed it, and aiokafka has perhaps not closed it yet
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
        """Whether a request can be written to a broker at once."""
        connection = self._conns.get((node, ConnectionGroup.DEFAULT))
        return connection is not None and connection.connected()

    async def connect(self, node: int) -> None:
        """Connect to a broker.

        Raises:
            UnreachableBrokerError: it cannot be reached.
        """
        if await self._get_conn(node) is None:
            raise UnreachableBrokerError(self._problems.get(node, f"broker {node}"))

    def drop(self, node: Any, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> None:
        """Close the connection to a broker that did not answer: the next request opens another."""
        connection = self._conns.pop((node, group), None)
        if connection is not None:
            connection.abort()

    # -- requests

    async def send(self, node_id: Any, request: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> Any:
        """Ask a broker.

        Raises:
            UnreachableBrokerError: it cannot be reached.
            KafkaError: no answer.
        """
        connection = self._conns.get((node_id, group))
        if connection is None or not connection.connected():
            connection = await self._get_conn(node_id, group=group)
        if connection is None:
            raise UnreachableBrokerError(self._problems.get(node_id, f"broker {node_id}"))
        return await connection.write(request)

    def send_now(self, node: int, request: Any) -> asyncio.Future[Any]:
        """Write a request to a broker that is connected; returns its answer, which raises a ``KafkaError`` if none comes.

        Raises:
            KafkaConnectionError: it is not connected any more.
        """
        connection: Connection = self._conns[node, ConnectionGroup.DEFAULT]
        return connection.write(request)

    async def ask(
        self, request: Any, *, first: int | None = None, within: float | None = None, shared: bool = False
    ) -> Any:
        """Ask one broker after the other.

        Args:
            first: the broker to begin with; the others follow in random order.
            within: seconds for all brokers together; the request timeout if not given.
            shared: whether to ask over connections on which records travel, which stay open if no answer comes.

        Raises:
            KafkaError: none answers.
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
                except (TimeoutError, asyncio.CancelledError) as error:  # the latter also at the caller's deadline
                    if not shared:
                        self.drop(node, group)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    problem = kafka_errors.RequestTimedOutError(f"broker {node} did not answer")
                except (kafka_errors.KafkaError, OSError) as error:
                    problem = error
                    lost = lost or isinstance(error, kafka_errors.KafkaConnectionError)
            if not lost or loop.time() >= end:
                raise problem
            await asyncio.sleep(self._retry_backoff)  # a concurrent request has dropped the connection

    @property
    def request_timeout(self) -> float:
        """Seconds that a broker may take to answer."""
        return float(self._request_timeout_ms / 1000)

    async def aclose(self) -> None:
        """Close the connections at once: aiokafka's ``close`` can wait for a broker that does not answer."""
        syncing, self._sync_task = self._sync_task, None
        if syncing is not None:
            await end_tasks([syncing])
        for connection in list(self._conns.values()):
            connection.abort()
        await asyncio.wait((asyncio.ensure_future(self.close()),), timeout=2.0)


async def end_tasks(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel until they are gone: one that catches the first cancellation gets the next."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for _ in range(50):
        if not alive:
            return
        for task in alive:
            task.cancel()
        await asyncio.sleep(0)
        alive = [task for task in alive if not task.done()]
