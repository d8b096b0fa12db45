"""What the backend uses of aiokafka beyond its documented API, for the version that it was read in. No other module uses any.

`Client` has the connections to a cluster and its metadata. It is made by its constructor, for the bus and for each consumer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, ClassVar, NamedTuple

import aiokafka.errors as kafka_errors
from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition

from msight_bus.backends.client_library import ClientLibrary
from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.errors import UnreachableBrokerError

AIOKAFKA = ClientLibrary("aiokafka", oldest="0.14", newest="0.14.0")

try:
    from aiokafka.client import AIOKafkaClient, ConnectionGroup
    from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator
    from aiokafka.consumer.group_coordinator import GroupCoordinator
    from aiokafka.consumer.subscription_state import SubscriptionState
    from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
    from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberMetadata
    from aiokafka.partitioner import murmur2
    from aiokafka.protocol.admin import (
        CreateTopicsRequest,
        DescribeConfigsRequest,
        DescribeGroupsRequest,
        SaslAuthenticateRequest,
    )
    from aiokafka.protocol.api import Request, RequestStruct, Response
    from aiokafka.protocol.fetch import FetchRequest
    from aiokafka.protocol.metadata import MetadataRequest
    from aiokafka.protocol.offset import OffsetRequest
    from aiokafka.protocol.produce import ProduceRequest
    from aiokafka.protocol.transaction import InitProducerIdRequest
    from aiokafka.protocol.types import (
        Boolean,
        CompactArray,
        CompactString,
        Int16,
        Int32,
        Schema,
        TaggedFields,
    )
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
        (AIOKafkaClient, ("force_metadata_update", "hosts")),
        (AIOKafkaClient(), ("cluster", "_conns", "_topics", "_sync_task", "_request_timeout_ms", "_retry_backoff")),
        (AIOKafkaConnection, ("connected", "send", "close", "authenticator_oauth")),
        (AIOKafkaConnection("", 0), ("_requests", "_writer", "_on_close_cb", "_request_timeout", "_loop")),
        (GroupCoordinator, ("_send_req", "_maybe_leave_group", "request_rejoin", "check_errors", "commit_offsets")),
        (GroupCoordinator, ("fetch_committed_offsets", "_do_commit_offsets")),
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


_SCRATCH_BYTES = 64 * 1024
_FRAME_BYTES = 4 * 1024 * 1024
"""A buffer is larger only when so much has come: who speaks another protocol may claim any size."""

_SIZE = struct.Struct(">i")


class _Frames(asyncio.BufferedProtocol):
    """Reads answers, each large one into a buffer of its size. The stream that aiokafka reads from copies them four times."""

    def __init__(self, connection: Connection, closed: asyncio.Future[None]) -> None:
        self._connection = connection
        self._closed = closed
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._filled = 0
        self._frame: bytearray | None = None  # what has come of one that is larger than the scratch buffer
        self._size = 0  # of that one
        self._is_at_eof = False

    def at_eof(self) -> bool:
        """Whether nothing more will come."""
        return self._is_at_eof

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self._scratch if self._frame is None else self._frame)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        """Take the frames that are complete."""
        self._filled += count
        try:
            if self._frame is None:
                self._take_from_scratch()
            elif self._filled == self._size:
                frame, self._frame, self._filled = self._frame, None, 0
                self._connection.take(frame)
            elif self._filled == len(self._frame):
                grown = bytearray(min(self._size, 2 * self._filled))
                grown[: self._filled] = self._frame
                self._frame = grown
        except Exception as error:  # a parser can raise anything for invalid bytes
            self._connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)

    def _take_from_scratch(self) -> None:
        view, at = memoryview(self._scratch), 0
        while self._filled - at >= _SIZE.size:
            (size,) = _SIZE.unpack_from(view, at)
            if size < 0:
                raise ValueError(f"an answer of {size} bytes")
            start, end = at + _SIZE.size, at + _SIZE.size + size
            if end > self._filled:
                if end <= _SCRATCH_BYTES:
                    break
                self._size = size
                self._frame = bytearray(min(size, _FRAME_BYTES))
                self._frame[: self._filled - start] = view[start : self._filled]
                self._filled -= start
                return
            self._connection.take(view[start:end].tobytes())
            at = end
        view[: self._filled - at] = view[at : self._filled]
        self._filled -= at

    def eof_received(self) -> None:
        """The broker has closed the connection."""
        self._is_at_eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection."""
        self._is_at_eof = True
        self._connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=exc)
        if not self._closed.done():
            self._closed.set_result(None)


class Connection(AIOKafkaConnection):
    """A connection to one broker."""

    async def connect(self) -> None:
        """Connect and authenticate.

        Raises:
            OSError: not reached.
            KafkaError: refused.
        """
        loop = self._loop
        self._closed_fut = loop.create_future()
        frames = _Frames(self, self._closed_fut)
        ssl = self._ssl_context if self._security_protocol in ("SSL", "SASL_SSL") else None
        name = self.host.rstrip(".") if ssl else None  # names in certificates have no trailing dot
        async with asyncio.timeout(self._request_timeout):
            transport, _ = await loop.create_connection(
                lambda: frames, self.host, self.port, ssl=ssl, server_hostname=name
            )
        self._reader, self._writer = frames, asyncio.StreamWriter(transport, frames, None, loop)
        self._read_task = loop.create_future()  # there is none
        self._read_task.set_result(None)
        if self._max_idle_ms is not None:
            self._idle_handle = loop.call_soon(self._idle_check, weakref.ref(self))
        try:
            await self._do_version_lookup()
            if self._security_protocol in ("SASL_SSL", "SASL_PLAINTEXT"):
                await self._do_sasl_handshake()
        except BaseException:
            self.close()
            raise

    def take(self, frame: bytes | bytearray) -> None:
        """Take an answer.

        Raises:
            Exception: it cannot be parsed.
        """
        expected, request, answer = self._requests[0]
        if not isinstance(request, FETCH_STRUCTS) or answer.done() or _SIZE.unpack_from(frame)[0] != expected:
            self._handle_frame(bytes(frame))
            return
        # Decoded before the request is removed: if that raises, closing the connection fails the request too.
        fetched = read_fetch(memoryview(frame)[_SIZE.size :], request.API_VERSION)
        self._requests.popleft()
        self._last_action = time.monotonic()
        answer.set_result(fetched)

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
        timer = self._loop.call_later(self._request_timeout, self._give_up, answer)
        answer.add_done_callback(lambda _: timer.cancel())
        return answer

    def _give_up(self, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            answer.set_exception(kafka_errors.RequestTimedOutError(f"no answer within {self._request_timeout:g} s"))
        self.abort()

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
            await _end_tasks([syncing])
        for connection in list(self._conns.values()):
            connection.abort()
        await asyncio.wait((asyncio.ensure_future(self.close()),), timeout=2.0)


async def _end_tasks(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel until they are gone: one that catches the first cancellation gets the next."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for _ in range(50):
        if not alive:
            return
        for task in alive:
            task.cancel()
        await asyncio.sleep(0)
        alive = [task for task in alive if not task.done()]


# -- record batches and produce requests

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

RecordHeader = tuple[str, bytes | None]


def batch_builder(codec: int, max_bytes: int) -> Any:
    """A batch in C: ``append(number, timestamp, key, value, headers)`` returns ``None`` if a record does not fit."""
    return DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, max_bytes)


def record_bytes(key: bytes | None, value: bytes | None, headers: Sequence[RecordHeader]) -> int:
    """Maximum bytes of a batch that holds only this record."""
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)) + 64


def _by_topic(values: Mapping[TopicPartition, Any]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = {}
    for where, value in values.items():
        topics.setdefault(where.topic, []).append((where.partition, *value))
    return list(topics.items())


def produce_request(batches: Mapping[TopicPartition, bytes], timeout: float) -> Any:
    """A request to append a batch to each partition, acknowledged by all in-sync replicas within ``timeout`` seconds."""
    topics = _by_topic({where: (data,) for where, data in batches.items()})
    return ProduceRequest(None, -1, int(timeout * 1000), topics)


def produce_errors(response: Any) -> Mapping[TopicPartition, int]:
    """The error code of each partition in the answer to a `produce_request`."""
    return {
        TopicPartition(topic, partition): code
        for topic, partitions in response.topics
        for partition, code, *_ in partitions
    }


# -- fetches and offsets

READ_UNCOMMITTED, READ_COMMITTED = 0, 1
LATEST, EARLIEST = -1, -2

FETCH_STRUCTS = tuple(each for each in FetchRequest._CLASSES if each.API_VERSION >= 4)
"""The versions of a fetch that have the ends of transactions."""

_INT16, _INT32 = struct.Struct(">h"), struct.Struct(">i")
_FETCHED = struct.Struct(">ihqq")
_ABORTED = struct.Struct(">qq")

_FETCH_WAIT_MS = 500
_FETCH_MAX_BYTES = 50 * 1024 * 1024


class Fetched(NamedTuple):
    """One partition's part of the answer to a fetch.

    Attributes:
        code: an error code, 0 without an error.
        end: the offset behind the last record of the log.
        stable: the offset of the first record of an open transaction, ``end`` without one.
        aborted: producer id and first offset of each aborted transaction.
        data: record batches; the last one may be cut short.
    """

    where: TopicPartition
    code: int
    end: int
    stable: int
    aborted: Sequence[tuple[int, int]]
    data: bytes | memoryview


def fetch_request(offsets: Mapping[TopicPartition, int], isolation: int, partition_bytes: int) -> Any:
    """A request for records from these offsets on; the first batch comes whole, however large it is (KIP-74)."""
    wanted = {where: (offset, partition_bytes) for where, offset in offsets.items()}
    return FetchRequest(_FETCH_WAIT_MS, 1, _FETCH_MAX_BYTES, isolation, _by_topic(wanted))


def read_fetch(answer: memoryview, version: int) -> list[Fetched]:
    """The partitions in the answer to a `fetch_request`, whose ``data`` are parts of ``answer``."""
    at = 10 if version >= 7 else 4  # throttle time, and the error and id of a session, which there is not
    (topics,) = _INT32.unpack_from(answer, at)
    at += 4
    found: list[Fetched] = []
    for _ in range(topics):
        (size,) = _INT16.unpack_from(answer, at)
        topic = str(answer[at + 2 : at + 2 + size], "utf-8")
        (partitions,) = _INT32.unpack_from(answer, at + 2 + size)
        at += 6 + size
        for _ in range(partitions):
            partition, code, end, stable = _FETCHED.unpack_from(answer, at)
            at += _FETCHED.size + (8 if version >= 5 else 0)  # the log's start
            (count,) = _INT32.unpack_from(answer, at)
            at += 4
            aborted = [_ABORTED.unpack_from(answer, at + number * _ABORTED.size) for number in range(max(0, count))]
            at += len(aborted) * _ABORTED.size + (4 if version >= 11 else 0)  # the preferred replica
            (size,) = _INT32.unpack_from(answer, at)
            at += 4
            data = answer[at : at + max(0, size)]
            at += len(data)
            found.append(Fetched(TopicPartition(topic, partition), code, end, stable, aborted, data))
    return found


def offsets_request(times: Mapping[TopicPartition, int], isolation: int) -> Any:
    """A request for the first offset at or behind a time, in milliseconds since 1970, or at `EARLIEST` or `LATEST`."""
    return OffsetRequest(-1, isolation, _by_topic({where: (at,) for where, at in times.items()}))


def read_offsets(response: Any) -> Iterator[tuple[TopicPartition, int, int]]:
    """Partition, error code and offset, -1 if there is none, in the answer to an `offsets_request`."""
    for topic, partitions in response.topics:
        for partition, code, *_, offset in partitions:
            yield TopicPartition(topic, partition), code, offset


# -- a topic's id, by which one that was deleted and created again differs (KIP-516); aiokafka's requests do not ask for it


class TopicIdentity(NamedTuple):
    """What tells a topic from an earlier one of its name.

    Attributes:
        id: its id, 16 bytes.
        partitions: number of partitions.
    """

    id: bytes
    partitions: int


class _Uuid:
    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value


_TEXT = CompactString("utf-8")
_TAGS = ("tags", TaggedFields)
_NODES = CompactArray(Int32)


class _MetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), _TAGS)),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replica_nodes", _NODES),
                        ("isr_nodes", _NODES),
                        ("offline_replicas", _NODES),
                        _TAGS,
                    ),
                ),
                ("topic_authorized_operations", Int32),
                _TAGS,
            ),
        ),
        ("cluster_authorized_operations", Int32),
        _TAGS,
    )


class _MetadataRequestStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class TopicIdentityRequest(Request[_MetadataRequestStruct]):
    """Ask for the identity of one topic, without creating it."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, False, {})


def read_identity(response: Any, topic: str) -> TopicIdentity | None:
    """The topic's identity in the answer; ``None`` if the topic does not exist.

    Raises:
        KafkaError: the broker did not say, or the topic is still being created.
    """
    for code, name, topic_id, _, partitions, *_ in response.topics:
        error = kafka_errors.for_code(code)
        if name == topic and error is kafka_errors.NoError:
            if any(partition[2] < 0 for partition in partitions):
                raise kafka_errors.LeaderNotAvailableError(topic)
            return TopicIdentity(topic_id, len(partitions))
        if name == topic and error not in (kafka_errors.NoError, kafka_errors.UnknownTopicOrPartitionError):
            raise error(topic)
    return None


# -- members of groups

_NEVER_MS = 2**31 - 1
_MARK = b"msight_bus"


class MarkingAssignor(RoundRobinPartitionAssignor):
    """aiokafka's assignor, with a mark in each member's metadata by which members of this make recognize each other."""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), _MARK)


class Member(GroupCoordinator):
    """A member of a consumer group. Joins, and rejoins until it is closed."""

    def __init__(
        self, client: Client, topic: str, group_id: str, session_timeout: float, listener: ConsumerRebalanceListener
    ) -> None:
        """``session_timeout`` are seconds after which the group gives up a member that is silent."""
        subscription = SubscriptionState()
        subscription.register_fetch_waiters(set())
        subscription.subscribe({topic}, listener)
        client.track(topic)
        session_ms = int(session_timeout * 1000)
        super().__init__(
            client,
            subscription,
            group_id=group_id,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=session_ms,
            heartbeat_interval_ms=min(2000, session_ms // 3),
            max_poll_interval_ms=_NEVER_MS,  # a slow consumer leaves the log waiting, and stays a member
            enable_auto_commit=False,
            assignors=(MarkingAssignor,),
        )

    @property
    def background_task(self) -> asyncio.Task[None]:
        """The task that keeps the member in its group. aiokafka does not start it again when it ends with an error."""
        task: asyncio.Task[None] = self._coordination_task
        return task

    @property
    def is_joined(self) -> bool:
        """Whether a commit is made as a member: one without a generation could rewind another's."""
        return bool(self.generation > 0)

    @property
    def has_coordinator(self) -> bool:
        """Whether the broker that coordinates the group is known and reached."""
        return self.coordinator_id is not None

    def check(self) -> None:
        """Raise the error of joining: aiokafka raises it only in a fetch, and retries after that.

        Raises:
            KafkaError: the group may not be joined, for instance.
        """
        if self._coordination_task.done():
            return  # the watcher of the task handles its error
        # aiokafka starts these again at the next rebalance only.
        for task in (self._heartbeat_task, self._commit_refresh_task):
            if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
                self.request_rejoin()
        self.check_errors()

    async def committed(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """The group's committed offsets of all ``partitions``, in one request; those without one are absent."""
        found = await self.fetch_committed_offsets(partitions)
        return {partition: entry for partition, entry in found.items() if entry.offset >= 0}

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets, also of partitions that belong to other members.

        Raises:
            KafkaError: not committed.
        """
        await self.commit_offsets(None, offsets)

    def _do_commit_offsets(self, assignment: Any, offsets: Any) -> asyncio.Task[None]:
        """Retrieve the error of a commit: aiokafka shields it from its caller's deadline, after which nobody waits for it."""
        task: asyncio.Task[None] = asyncio.create_task(super()._do_commit_offsets(assignment, offsets))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def partitions_of_mates(self) -> set[TopicPartition] | None:
        """The partitions of those members of the group that are of this make.

        ``None`` if the broker does not tell: a group with members of the newer protocol (KIP-848) cannot be described so.

        Raises:
            RebalanceInProgressError: a rebalance is under way.
            KafkaError: no answer.
        """
        response = await self._send_req(DescribeGroupsRequest([self.group_id]))
        ((code, _, state, _, _, members, *_),) = response.groups
        if state in ("PreparingRebalance", "CompletingRebalance"):
            raise kafka_errors.RebalanceInProgressError(state)
        if code or state != "Stable":
            return None
        partitions: set[TopicPartition] = set()
        for _, _, _, metadata, assignment in members:
            try:
                if ConsumerProtocol.METADATA.decode(metadata).user_data == _MARK:
                    partitions.update(ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions())
            except (ValueError, struct.error):
                continue  # of another make
        return partitions

    async def aclose(self, leave_within: float) -> None:
        """End, and leave the group if the broker answers within ``leave_within`` seconds."""
        if not self._closing.done():
            self._closing.set_result(None)
        await _end_tasks((self._coordination_task, self._heartbeat_task, self._commit_refresh_task))
        leaving = asyncio.ensure_future(self._maybe_leave_group())
        await asyncio.wait((leaving,), timeout=leave_within)
        await _end_tasks((leaving,))
