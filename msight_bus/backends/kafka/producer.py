"""Sends the batches of all partitions. A failed batch affects its own partition only.

aiokafka's producer consumes the sequence numbers of a refused batch, never requests another producer id, and stops publishing on
all topics at an unexpected error.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any
from zlib import crc32

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from msight_bus.backends.kafka.aiokafka_compat import (
    CODECS,
    Client,
    InitProducerIdRequest,
    batch_builder,
    murmur2,
    produce_request,
    read_produce,
)
from msight_bus.backends.kafka.errors import error_for, translate
from msight_bus.backends.kafka.partition_writer import PartitionWriter, ProducerId
from msight_bus.backends.kafka.topics import TopicDirectory
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

_IN_FLIGHT = 5
"""Maximum number of unanswered requests to one broker. A partition has a batch in at most one of them."""

_REQUEST_BYTES = 8 * 1024 * 1024
"""A request that holds this many bytes takes no further batch."""

_AGAIN_AFTER = 0.1
"""Seconds between two requests for a producer id."""

_MAX_EVICTED = 10_000
"""Maximum number of evicted partitions whose sequence numbers are kept; above it, the bus requests another producer id."""

_LOOK_AT = 1000
"""Maximum number of topics examined to find one to evict."""


class _Topic:
    """A topic that the bus has published on.

    Attributes:
        counter: session and last sequence of the topic.
        writers: the writers of the topic's partitions, by partition.
        placed_at: when the topic was moved to its place in the eviction order, by the loop's clock.
    """

    __slots__ = ("counter", "placed_at", "writers")

    def __init__(self, counter: TopicCounter, now: float) -> None:
        self.counter = counter
        self.writers: dict[int, PartitionWriter] = {}
        self.placed_at = now


class KafkaProducer:
    """The writers of all partitions, and the requests that carry their batches."""

    def __init__(
        self,
        settings: BusSettings,
        client: Client,
        topics: TopicDirectory,
        new_session: Callable[[], int],
        *,
        on_forgotten: Callable[[str], None],
    ) -> None:
        """
        Args:
            settings: the settings of the bus.
            client: the connections that batches are sent on.
            topics: looks topics up and creates them.
            new_session: returns a random session id.
            on_forgotten: called with each topic whose writers are evicted.
        """
        self._settings = settings
        self._client = client
        self._topics = topics
        self._new_session = new_session
        self._session = 0
        self._on_forgotten = on_forgotten
        self._codec = CODECS[settings.kafka.compression]
        self._written: dict[str, _Topic] = {}
        self._kept: Counter[str] = Counter()
        self._producer_id: ProducerId | None = None
        self._evicted_sequences: dict[TopicPartition, int] = {}  # next sequence numbers of evicted writers
        self._asking = asyncio.Lock()
        self._awake: dict[PartitionWriter, None] = {}
        self._will_send = False
        self._in_flight: Counter[int] = Counter()  # by broker
        self.patience = settings.limits.publish_timeout
        """Time in seconds that a batch waits for a partition without a leader, or for one that does not exist."""

    # -- the producer id

    @property
    def is_open(self) -> bool:
        """Whether the producer has a producer id."""
        return self._producer_id is not None

    async def ensure_open(self) -> None:
        """Request a producer id, at the first message: a program that only subscribes may lack the permission.

        Raises:
            ConnectionLostError: Kafka did not answer within ``connect_timeout`` seconds.
            BusError: Kafka refused.
        """
        if self.is_open:
            return
        within = self._settings.limits.connect_timeout
        try:
            async with asyncio.timeout(within):
                await self._get_producer_id(None)
        except TimeoutError as error:
            raise ConnectionLostError(
                f"Kafka assigned no producer id within {within:g} s (MSIGHT_CONNECT_TIMEOUT); nothing was sent. Check that the "
                "cluster has a controller."
            ) from error
        except KafkaError as error:
            raise translate(error, "connect") from error

    async def _get_producer_id(self, spent: ProducerId | None) -> ProducerId:
        """Return the producer id of the bus; a new one if the current one is ``spent``.

        Raises:
            KafkaError: Kafka refused.
        """
        async with self._asking:
            while self._producer_id is None or self._producer_id == spent:
                try:
                    answer = await self._client.ask(InitProducerIdRequest(None, 60_000))
                    if answer.error_code:
                        raise error_for(answer.error_code)()
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    await asyncio.sleep(_AGAIN_AFTER)
                else:
                    self._producer_id = ProducerId(answer.producer_id, answer.producer_epoch)
            return self._producer_id

    # -- sending

    def wake(self, writer: PartitionWriter) -> None:
        """Send the writer's next batch at the end of this event loop iteration, together with the batches of other writers."""
        self._awake[writer] = None
        if not self._will_send:
            self._will_send = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._will_send = False
        ready: dict[int, list[PartitionWriter]] = {}
        for writer in list(self._awake):
            problem: Exception | None = None
            try:
                node = self._client.leader(writer.where)
                if node is not None and self._in_flight[node] >= _IN_FLIGHT:
                    continue  # sent when the broker answers a request
                can_send = node is not None and writer.producer_id is not None and self._client.is_connected(node)
            except Exception as error:  # a bug must not stop the writers
                logger.exception("Publish on %s failed unexpectedly; retrying.", writer.where)
                node, can_send, problem = None, False, error
            del self._awake[writer]
            if not writer.take():
                continue
            if node is not None and can_send:
                ready.setdefault(node, []).append(writer)
            else:
                writer.retry(problem)
        for node, writers in ready.items():
            self._send_to(node, writers)

    def _send_to(self, node: int, writers: list[PartitionWriter]) -> None:
        batches: dict[TopicPartition, bytes] = {}
        carried: dict[TopicPartition, PartitionWriter] = {}
        size = 0
        for writer in writers:
            data = writer.encode()
            if data is None:
                continue
            if size and size + len(data) > _REQUEST_BYTES:
                self._request(node, carried, batches)
                carried, batches, size = {}, {}, 0
            carried[writer.where], batches[writer.where] = writer, data
            size += len(data)
        if carried:
            self._request(node, carried, batches)

    def _request(
        self, node: int, writers: dict[TopicPartition, PartitionWriter], batches: dict[TopicPartition, bytes]
    ) -> None:
        try:
            answer = self._client.send_now(node, produce_request(batches, self._settings.limits.connect_timeout))
        except Exception as error:
            self._failed(writers, error)
            return
        self._in_flight[node] += 1
        answer.add_done_callback(lambda _: self._finish(node, writers, answer))

    def _finish(self, node: int, writers: dict[TopicPartition, PartitionWriter], answer: asyncio.Future[Any]) -> None:
        self._in_flight[node] -= 1
        self._will_send = True  # by the call of `_send` below
        try:
            produced = read_produce(answer.result())
            errors = {
                where: error_for(one.code)(one.reason or where.topic) if (one := produced[where]).code else None
                for where in writers
            }
        except (Exception, asyncio.CancelledError) as error:
            self._failed(writers, error)
        else:
            for where, writer in writers.items():
                writer.answered(errors[where], produced[where].refused)
        self._send()

    def _failed(self, writers: dict[TopicPartition, PartitionWriter], error: BaseException) -> None:
        if not isinstance(error, KafkaError | asyncio.CancelledError):
            logger.warning("Produce request failed unexpectedly; resending: %r", error)
        for writer in writers.values():
            writer.retry(error)

    # -- producer id, leader and connection of a batch

    def is_located(self, where: TopicPartition) -> bool:
        """Return whether the partition has a leader."""
        return self._client.leader(where) is not None

    async def prepare(self, writer: PartitionWriter, *, stale: bool) -> None:
        """Get a producer id, the leader of the writer's partition and a connection to the leader.

        Args:
            writer: a writer with a batch to send.
            stale: whether the last attempt failed because the cluster's metadata are out of date.

        Raises:
            KafkaError, BusError: one of these is not available; the caller retries after a retriable error.
        """
        where = writer.where
        if writer.producer_id is None:
            writer.producer_id = await self._get_producer_id(writer.spent)
            writer.sequence = self._evicted_sequences.pop(where, 0)
        self._client.track(where.topic)
        if stale:
            await self._client.update_metadata()
        if not self.is_located(where):
            await self._locate(where)
        node = self._client.leader(where)
        if node is None:
            raise LeaderNotAvailableError(where.topic)
        await self._client.connect(node)

    async def _locate(self, where: TopicPartition) -> None:
        if await self._client.add_metadata(where.topic) and self.is_located(where):
            return
        for _ in range(2):  # an update in progress may have begun before this call
            if await self._client.update_metadata() and self.is_located(where):
                return
        if where.topic in self._client.cluster.unauthorized_topics:
            raise TopicAuthorizationFailedError(where.topic)
        if where.partition in (self._client.cluster.partitions_for_topic(where.topic) or ()):
            return  # exists, without a leader
        self._topics.forget(where.topic)
        info = await self._topics.ensure(where.topic)
        if where.partition >= info.partitions:
            gone = UnknownTopicOrPartitionError(f"no partition {where.partition}")
            raise translate(gone, "publish", f"on {where.topic!r}")

    def too_large(self, topic: str) -> None:
        """Look up the topic's limit again, because the broker refused a batch for its size."""
        self._topics.refresh_soon(topic)

    def new_builder(self, topic: str, max_bytes: int | None = None) -> Any:
        """Return an empty batch of at most ``max_bytes``; without it, at most as large as the topic accepts."""
        if max_bytes is None:
            info = self._topics.known(topic)
            batch_bytes = self._settings.kafka.tuning.batch_bytes
            max_bytes = batch_bytes if info is None else min(batch_bytes, info.max_message_bytes)
        return batch_builder(self._codec, max_bytes)

    # -- writers

    def writer(self, topic: str, partition: int) -> PartitionWriter:
        """Return the writer of a partition, created at the first call."""
        written = self._written.get(topic) or self._begin(topic)
        writer = written.writers.get(partition)
        if writer is None:
            linger = self._settings.kafka.tuning.linger_ms / 1000
            where = TopicPartition(topic, partition)
            writer = written.writers[partition] = PartitionWriter(where, self, written.counter, linger)
        return writer

    def _begin(self, topic: str) -> _Topic:
        if not self._session:
            self._session = self._new_session() or 1
        self._forget_surplus(len(self._written) + 1 - self._settings.limits.publisher_topics)
        written = self._written[topic] = _Topic(TopicCounter(topic, self._session), asyncio.get_running_loop().time())
        return written

    def _forget_surplus(self, count: int) -> None:
        """Evict up to ``count`` idle topics, the least recently used first; topics with an open `publisher` stay."""
        for name, written in list(islice(self._written.items(), _LOOK_AT if count > 0 else 0)):
            if count <= 0:
                return
            used_at = max((writer.used_at for writer in written.writers.values()), default=0.0)
            idle = all(writer.is_idle for writer in written.writers.values())
            del self._written[name]
            if used_at > written.placed_at or not idle or self._kept[name]:
                written.placed_at = max(used_at, written.placed_at)
                self._written[name] = written  # to the end of the eviction order
                continue
            count -= 1
            # a topic that is published on again must not restart at sequence 1 of the same session
            self._session = self._new_session() or 1
            self._keep_sequences(written.writers.values())
            self._client.untrack(name)
            self._on_forgotten(name)

    def _keep_sequences(self, writers: Iterable[PartitionWriter]) -> None:
        """Keep the next sequence number of each evicted writer: the broker expects it from a later writer of the partition."""
        self._evicted_sequences |= {one.where: one.sequence for one in writers if one.producer_id == self._producer_id}
        if len(self._evicted_sequences) > _MAX_EVICTED:
            self._evicted_sequences.clear()
            self._producer_id = None

    def counter(self, topic: str) -> TopicCounter | None:
        """Session and last sequence of a topic; ``None`` if it has no writers."""
        written = self._written.get(topic)
        return None if written is None else written.counter

    def counters(self) -> Iterator[TopicCounter]:
        """Return the counters of all topics that have writers."""
        return (written.counter for written in list(self._written.values()))

    def keep(self, topic: str) -> None:
        """Do not evict the topic until `release` is called as often."""
        self._kept[topic] += 1

    def release(self, topic: str) -> None:
        """Undo one call of `keep`."""
        self._kept[topic] -= 1
        if not self._kept[topic]:
            del self._kept[topic]

    def _all_writers(self, topic: str | None = None) -> list[PartitionWriter]:
        """Return the writers of ``topic``; ``None``: of all topics."""
        if topic is not None:
            written = self._written.get(topic)
            return [] if written is None else list(written.writers.values())
        return [writer for written in self._written.values() for writer in written.writers.values()]

    async def flush(self, topic: str | None, within: float) -> bool:
        """Wait until every record on ``topic`` (``None``: on all topics) is acknowledged.

        Returns:
            Whether that took at most ``within`` seconds.
        """
        waiting = [done for writer in self._all_writers(topic) for done in writer.unfinished()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=within)
            return not late
        return True

    async def close(self, within: float) -> None:
        """Flush for at most ``within`` seconds, then stop."""
        await self.flush(None, within)
        await self.give_up(
            PublishTimeoutError("The bus closed before Kafka acknowledged a message; it may still arrive.")
        )

    async def give_up(self, error: BusError) -> None:
        """Stop at once; pending acknowledgements raise ``error``."""
        if retries := self.abort(error):
            await asyncio.wait(retries)

    def abort(self, error: BusError) -> list[asyncio.Task[None]]:
        """Fail every message in flight with ``error``; return the cancelled retries, for the caller to await."""
        return [retry for writer in self._all_writers() if (retry := writer.give_up(error)) is not None]


def choose_partition(key: bytes, partitions: int) -> int:
    """Return the partition of a record with a key, chosen as Kafka's Java clients do (murmur2)."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def choose_unkeyed_partition(name: str, partitions: int) -> int:
    """Return the partition of records without a key, chosen by the publisher's stable name."""
    return crc32(name.encode()) % partitions
