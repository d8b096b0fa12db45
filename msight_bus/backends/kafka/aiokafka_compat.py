"""The private names of aiokafka that the backend depends on, for the version that they were read in.

`consumer_compat.py` has those of consumers; `client.py`, `admin.py` and `idempotence.py` touch some too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from msight_bus.backends.client_library import ClientLibrary
from msight_bus.backends.kafka.errors import UnreachableBrokerError

logger = logging.getLogger("msight_bus")

AIOKAFKA = ClientLibrary("aiokafka", oldest="0.14.0", newest="0.14.0")


def check_connections() -> None:
    """Log a WARNING if the installed aiokafka is not a tested version.

    Raises:
        BusError: it lacks a private attribute that this module uses.
    """
    AIOKAFKA.check(
        (AIOKafkaClient, ("_get_conn", "_metadata_update", "_on_connection_closed", "force_metadata_update", "send")),
        (AIOKafkaConnection, ("connected", "send", "close")),
    )


# -- what it logs


class _Quiet(logging.Filter):
    """Moves to DEBUG what aiokafka tells of what it tries again: the bus tells of it, once and with what to do.

    What it logs with a traceback is a bug, and stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.exc_info:
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


for _name in (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.coordinator.assignors.range",
    "aiokafka.coordinator.assignors.roundrobin",
    "aiokafka.producer.sender",
):  # a logger's filter does not see what the loggers below it are given
    logging.getLogger(_name).addFilter(_Quiet())

# -- connections and metadata, of producers, consumers and admin clients alike

Credentials = Callable[[], dict[str, Any]]
"""What a connection needs to be let in, as it is now: aiokafka's arguments of these names."""

TopicSeen = Callable[[str, int], None]
"""Is told of each topic in an answer of the cluster: its name, and how many partitions it has, 0 if it does not exist."""


def take_over(client: AIOKafkaClient, credentials: Credentials, seen: TopicSeen | None = None) -> None:
    """Turn a client's connections, before it is started, into those of `Client`."""
    client.__class__ = Client
    client._credentials = credentials
    client._seen = seen
    client._problems = {}
    client._connecting = {}
    client._refresh_credentials()


class Client(AIOKafkaClient):
    """Connections to a cluster.

    In aiokafka's own, asking for metadata creates topics; a connection whose metadata request times out stays; addresses
    that no longer answer are never replaced by those that the bootstrap servers tell; certificates are read once; and a
    connection that cannot be made holds up those to other brokers.
    """

    _credentials: Credentials
    _seen: TopicSeen | None
    _problems: dict[Any, str]
    _connecting: dict[Any, asyncio.Lock]

    def _refresh_credentials(self) -> None:
        for name, value in self._credentials().items():
            setattr(self, f"_{name}", value)

    async def _connect(self, host: str, port: int) -> Any:
        self._refresh_credentials()
        return await create_conn(
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
            self._conns.pop(place, None)
            broker = self.cluster.broker_metadata(node_id)
            if broker is None:
                self._problems[node_id] = f"broker {node_id} is not in the cluster's metadata"
                self.force_metadata_update()
                return None
            try:
                connection = await self._connect(broker.host, broker.port)
            except (OSError, TimeoutError, kafka_errors.KafkaError) as error:
                reason = str(error) or type(error).__name__
                self._problems[node_id] = f"broker {node_id} at {broker.host}:{broker.port}: {reason}"
                logger.debug("Cannot connect to %s.", self._problems[node_id])
                self.force_metadata_update()
                return None
            self._conns[place] = connection
            return connection

    async def send(self, node_id: Any, request: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> Any:
        """Ask a broker.

        Raises:
            UnreachableBrokerError: it cannot be connected to.
            KafkaError: no answer.
        """
        try:
            return await super().send(node_id, request, group=group)
        except kafka_errors.NodeNotReadyError as error:
            raise UnreachableBrokerError(self._problems.get(node_id, f"broker {node_id}")) from error

    def drop(self, node_id: Any) -> None:
        """Close the connection to a broker that did not answer: the next question opens another."""
        for group in ConnectionGroup:
            connection = self._conns.pop((node_id, group), None)
            if connection is not None:
                _abort(connection)

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        request = MetadataRequest(list(topics) if topics else None, allow_auto_topic_creation=False)
        metadata = await self._ask_brokers(request) or await self._ask_bootstrap_servers(request)
        if metadata is None:
            logger.debug("No broker of the cluster and no bootstrap server gives metadata.")
            cluster_metadata.failed_update(None)
            return False
        if not metadata.brokers:
            return False
        cluster_metadata.update_metadata(metadata)
        bootstrap = self._conns.pop(("bootstrap", ConnectionGroup.DEFAULT), None)
        if bootstrap is not None:
            bootstrap.close()
        if self._tell(metadata):
            await asyncio.sleep(self._retry_backoff)  # whoever waits for such a topic asks again at once
        return True

    async def _ask_brokers(self, request: Any) -> Any:
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        if ("bootstrap", ConnectionGroup.DEFAULT) in self._conns:
            nodes.append("bootstrap")
        for node in _shuffled(nodes):
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                return await connection.send(request)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                logger.debug("Broker %s gives no metadata: %r", node, error)
                _abort(connection)
        return None

    async def _ask_bootstrap_servers(self, request: Any) -> Any:
        """Begin anew, since the brokers may have moved."""
        for host, port, _ in self.hosts:
            try:
                connection = await self._connect(host, port)
            except (OSError, TimeoutError, kafka_errors.KafkaError) as error:
                logger.debug("Cannot connect to the bootstrap server %s:%s: %r", host, port, error)
                continue
            try:
                return await connection.send(request)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                logger.debug("The bootstrap server %s:%s gives no metadata: %r", host, port, error)
            finally:
                _abort(connection)
        return None

    def _tell(self, metadata: Any) -> bool:
        """Tell who wants to know of the topics; returns whether one does not exist."""
        missing = False
        for entry in metadata.topics:
            error = kafka_errors.for_code(entry[0])
            if error is kafka_errors.UnknownTopicOrPartitionError:
                missing = True
                count = 0
            elif error is kafka_errors.NoError:
                count = len(entry[-1])
            else:
                continue
            if self._seen is not None:
                self._seen(entry[1], count)
        return missing


def _shuffled(nodes: list[Any]) -> list[Any]:
    return random.sample(nodes, len(nodes))


def _abort(connection: Any) -> None:
    """Close a connection without waiting for what it has not sent."""
    writer = connection._writer
    connection._on_close_cb = None
    connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
    if writer is not None:
        writer.transport.abort()
