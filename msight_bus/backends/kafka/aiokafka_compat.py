"""What the backend uses of aiokafka beyond its documented API, for the version that it was read in. No other module uses any.

`Client` has the connections to a cluster and its metadata. It is made by its constructor, for the bus and for each consumer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition

from msight_bus.backends.client_library import ClientLibrary
from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.errors import UnreachableBrokerError

AIOKAFKA = ClientLibrary("aiokafka", oldest="0.14.0", newest="0.14.0")

try:
    from aiokafka.client import AIOKafkaClient, ConnectionGroup
    from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator
    from aiokafka.partitioner import murmur2
    from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest, SaslAuthenticateRequest
    from aiokafka.protocol.metadata import MetadataRequest
    from aiokafka.protocol.produce import ProduceRequest
    from aiokafka.protocol.transaction import InitProducerIdRequest
    from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
    from aiokafka.record.legacy_records import LegacyRecordBatch
except ImportError as error:
    raise AIOKAFKA.lacks(str(error)) from error

__all__ = [
    "CreateTopicsRequest", "DefaultRecordBatch", "DescribeConfigsRequest", "InitProducerIdRequest", "LegacyRecordBatch",
    "MetadataRequest", "murmur2",
]  # fmt: skip

logger = logging.getLogger("msight_bus")


def check_aiokafka() -> None:
    """Log a WARNING if the installed aiokafka is not a tested version.

    Raises:
        BusError: it lacks a private attribute that this module uses.
    """
    AIOKAFKA.check(
        (AIOKafkaClient, ("_get_conn", "_metadata_update", "_md_synchronizer", "_on_connection_closed")),
        (AIOKafkaClient, ("force_metadata_update", "send")),
        (AIOKafkaConnection, ("connected", "send", "close", "authenticator_oauth")),
        (DefaultRecordBatchBuilder, ("append", "build", "set_producer_state", "estimate_size_in_bytes")),
        (DefaultRecordBatch, ("validate_crc",)),
    )


# -- what aiokafka logs


class _Quiet(logging.Filter):
    """Moves aiokafka's lines about what it tries again to DEBUG: the bus logs each problem itself, once, with what to do.

    A line with a traceback is a bug, and stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.exc_info:
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _Redaction(logging.Filter):
    """Hides SASL requests and refusals: aiokafka logs each request at DEBUG, and one holds the password or the token."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(type(each).__name__ if _is_secret(each) else each for each in record.args)
        return True


def _is_secret(logged: object) -> bool:
    api = getattr(logged, "API_KEY", None)
    return api == SaslAuthenticateRequest.API_KEY or isinstance(logged, kafka_errors.SaslAuthenticationFailed)


for _name in (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.coordinator.assignors.range",
    "aiokafka.coordinator.assignors.roundrobin",
):  # a filter of a logger does not see the records of the loggers below it
    logging.getLogger(_name).addFilter(_Quiet())
for _name in ("aiokafka.conn", "aiokafka.client"):
    logging.getLogger(_name).addFilter(_Redaction())

# -- connections


class _OAuth(OAuthAuthenticator):
    """Answers a refusal, which aiokafka takes for a success: it comes as a challenge (RFC 7628, 3.2.2 and 3.2.3)."""

    async def step(self, payload: bytes | None) -> tuple[bytes | str, bool] | None:
        return (b"\x01", True) if payload else await super().step(payload)


class Connection(AIOKafkaConnection):
    """A connection to one broker."""

    def authenticator_oauth(self) -> _OAuth:
        return _OAuth(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Write a request; returns its answer to await.

        Raises:
            KafkaConnectionError: the connection is closed. uvloop raises a RuntimeError if it was closed just now.
        """
        try:
            return super().send(request, expect_response)
        except RuntimeError as error:
            raise kafka_errors.KafkaConnectionError("The connection was closed.") from error

    def write(self, request: Any) -> asyncio.Future[Any]:
        """Write a request; returns its answer. The connection is aborted if that does not come within the request timeout.

        Raises:
            KafkaConnectionError: the connection is closed.
        """
        self.send(request).close()  # the wait for the answer
        answer: asyncio.Future[Any] = self._requests[-1][2]
        timer = self._loop.call_later(self._request_timeout, self.abort)
        answer.add_done_callback(lambda _: timer.cancel())
        return answer

    def abort(self) -> None:
        """Close without waiting for what has not been sent."""
        writer, self._on_close_cb = self._writer, None
        self.close(reason=CloseReason.CONNECTION_TIMEOUT)
        if writer is not None:
            writer.transport.abort()


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
        """``options`` are aiokafka's."""
        super().__init__(**options)
        self._sync_task: asyncio.Task[None] | None = None
        self._credentials = credentials
        self._seen = seen
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
        if self._report(metadata):
            await asyncio.sleep(self._retry_backoff)  # whoever waits for such a topic asks again at once
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
        """Ask over a connection of its own: the brokers may have moved."""
        for (host, port, _), share in in_turn(self.hosts, self._request_timeout_ms / 1000):
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
        try:
            return await super().send(node_id, request, group=group)
        except kafka_errors.NodeNotReadyError as error:
            raise UnreachableBrokerError(self._problems.get(node_id, f"broker {node_id}")) from error

    def send_now(self, node: int, request: Any) -> asyncio.Future[Any]:
        """Write a request to a broker that is connected; returns its answer, which raises a ``KafkaError`` if none comes.

        Raises:
            KafkaConnectionError: it is not connected any more.
        """
        connection: Connection = self._conns[node, ConnectionGroup.DEFAULT]
        return connection.write(request)

    async def ask(self, request: Any, *, first: int | None = None, within: float | None = None) -> Any:
        """Ask one broker after the other, over connections on which no records travel.

        Args:
            first: the broker to begin with; the others follow in random order.
            within: seconds for all brokers together; the request timeout if not given.

        Raises:
            KafkaError: none answers.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + (within or self._request_timeout_ms / 1000)
        problem: Exception = kafka_errors.NodeNotReadyError("No broker is known.")
        while True:
            lost = False
            nodes = sorted(self._shuffled_nodes(), key=lambda node: bool(node != first))
            for node, share in in_turn(nodes, end - loop.time()):
                try:
                    async with loop_timeout(share):
                        return await self.send(node, request, group=ConnectionGroup.COORDINATION)
                except TimeoutError:
                    self.drop(node, ConnectionGroup.COORDINATION)
                    problem = kafka_errors.RequestTimedOutError(f"broker {node} did not answer")
                except asyncio.CancelledError:  # at the caller's deadline, perhaps because the connection is dead
                    self.drop(node, ConnectionGroup.COORDINATION)
                    raise
                except (kafka_errors.KafkaError, OSError) as error:
                    problem = error
                    lost = lost or isinstance(error, kafka_errors.KafkaConnectionError)
            if not lost or loop.time() >= end:
                raise problem
            await asyncio.sleep(self._retry_backoff)  # who asked beside this has dropped the connection

    async def aclose(self) -> None:
        """Close the connections at once: aiokafka's ``close`` can wait for a broker that does not answer."""
        syncing, self._sync_task = self._sync_task, None
        if syncing is not None:
            syncing.cancel()
            await asyncio.wait((syncing,))
        for connection in list(self._conns.values()):
            connection.abort()
        await asyncio.wait((asyncio.ensure_future(self.close()),), timeout=2.0)


# -- record batches and produce requests

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

RecordHeader = tuple[str, bytes | None]


def batch_builder(codec: int, max_bytes: int) -> Any:
    """A batch in C: ``append(number, timestamp, key, value, headers)`` returns ``None`` if a record does not fit."""
    return DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, max_bytes)


def record_bytes(key: bytes | None, value: bytes | None, headers: Sequence[RecordHeader]) -> int:
    """Bytes at most that a record takes in a batch of its own."""
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)) + 64


def produce_request(batches: Iterable[tuple[TopicPartition, bytes]], timeout: float) -> Any:
    """A request to append batches, one a partition, to be acknowledged by all in-sync replicas within ``timeout`` seconds."""
    topics: dict[str, list[tuple[int, bytes]]] = {}
    for where, data in batches:
        topics.setdefault(where.topic, []).append((where.partition, data))
    return ProduceRequest(None, -1, int(timeout * 1000), list(topics.items()))


def produce_errors(response: Any) -> Mapping[TopicPartition, int]:
    """The error code of each partition in the answer to a `produce_request`."""
    return {
        TopicPartition(topic, partition): code
        for topic, partitions in response.topics
        for partition, code, *_ in partitions
    }
