"""Publishing to Kafka: one queue of batches a partition, so that order holds and a batch costs one future.

While a batch is on its way the next one fills, so batches grow with the rate and nothing waits on a timer. aiokafka keeps
one batch of a partition in flight. A full batch is handed to it behind that one, so that it never waits for us; one that can
still fill is not, or what comes next would have to wait for both.
"""

from __future__ import annotations

import asyncio
import logging
from binascii import hexlify
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from time import time_ns
from typing import Any
from zlib import crc32

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError
from aiokafka.partitioner import murmur2

from msight_bus.backends.kafka.aiokafka_compat import Credentials, take_over
from msight_bus.backends.kafka.client import close_batch, record_appender
from msight_bus.backends.kafka.errors import translate
from msight_bus.backends.kafka.idempotence import IdempotentProducer
from msight_bus.backends.kafka.topics import TopicDirectory
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError
from msight_bus.protocol.envelope import HEADER, TopicCounter, pack_meta
from msight_bus.settings import BusSettings
from msight_bus.tasks import run_shielded

logger = logging.getLogger("msight_bus")

_HANDED_OVER = 2
"""Batches that aiokafka has at most, if the last one is full."""

_QUEUED_BATCHES = 2
"""Full batches of one partition that may wait before its publisher waits too."""

_METADATA_AGE_MS = 300_000
"""Milliseconds after which the cluster is asked again which partitions the topics have."""

_LOOK_AGAIN = 0.1
"""Seconds between two looks at a partition that a broker has not heard of yet."""

_LOOK_AT = 1000
"""Topics that are looked at to find one that can be forgotten."""

_TURN_BYTES = 128 * 1024
"""After so many bytes a publisher that never had to wait gives the loop a turn."""


class _Batch:
    __slots__ = ("append", "begun", "builder", "count", "done")

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.append = record_appender(builder)
        self.count = 0
        loop = asyncio.get_running_loop()
        self.begun = loop.time()
        self.done: asyncio.Future[None] = loop.create_future()


class _Topic:
    """What is published on.

    Attributes:
        counter: its session and last sequence.
        writers: of its partitions.
        placed_at: when it took its place among the others, by the loop's clock.
    """

    __slots__ = ("counter", "placed_at", "writers")

    def __init__(self, counter: TopicCounter, now: float) -> None:
        self.counter = counter
        self.writers: dict[int, PartitionWriter] = {}
        self.placed_at = now


class PartitionWriter:
    """Records of one partition, batched in order."""

    def __init__(self, topic: str, partition: int, owner: KafkaProducer, counter: TopicCounter, linger: float) -> None:
        self.topic = topic
        self._counter = counter
        self.partition = partition
        self._owner = owner
        self._linger = linger
        self._filling: _Batch | None = None
        self._full: deque[_Batch] = deque()
        self._moved = asyncio.Event()  # a batch is full, or one was acknowledged
        self._room = asyncio.Event()
        self._room.set()
        self._where = TopicPartition(topic, partition)
        self._handed_over = 0
        self._producer: IdempotentProducer | None = None  # which has them
        self._turn_bytes = 0
        self.unfinished: set[asyncio.Future[None]] = set()
        self.congested = False
        self.used_at = 0.0
        self.task: asyncio.Task[None] | None = None  # while something is queued

    def append(
        self, key: bytes | None, value: bytes | None, user: Sequence[tuple[str, bytes | None]] = ()
    ) -> asyncio.Future[None]:
        """Stamp a record and add it to the batch that is being filled; returns the batch's acknowledgement.

        ``user`` are the publisher's own headers.
        """
        now = time_ns()
        counter = self._counter
        counter.sequence = sequence = counter.sequence + 1
        headers = [(HEADER, hexlify(pack_meta(counter.session, sequence, now))), *user]
        batch = self._filling or self._next()
        if batch.append(batch.count, now // 1_000_000, key, value, headers) is None:
            self._full.append(batch)
            self._moved.set()
            batch = self._next()
            batch.append(0, now // 1_000_000, key, value, headers)
            if len(self._full) >= _QUEUED_BATCHES:
                self.congested = True
                self._room.clear()
        batch.count += 1
        self._turn_bytes += (0 if value is None else len(value)) + 64
        if self._turn_bytes > _TURN_BYTES and not self.congested:
            self._turn_bytes = 0
            self.congested = True
            self._room.clear()
            asyncio.get_running_loop().call_soon(self._give_room)
        if self.task is None:
            self._start()
        return batch.done

    def _start(self) -> None:
        if self.task is None:
            self.task = asyncio.create_task(self._run(), name=f"msight_bus writer {self.topic}-{self.partition}")

    def _next(self) -> _Batch:
        self._filling = batch = _Batch(self._owner.new_builder(self.topic))
        self.used_at = batch.begun
        self.unfinished.add(batch.done)
        batch.done.add_done_callback(self._finished)
        return batch

    def _finished(self, done: asyncio.Future[None]) -> None:
        self.unfinished.discard(done)
        if not done.cancelled():
            done.exception()  # known to whoever published; nobody waiting is no error

    def _give_room(self) -> None:
        if len(self._full) < _QUEUED_BATCHES:
            self.congested = False
            self._room.set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or on its way."""
        return not self.unfinished and self.task is None and not self._handed_over

    async def room(self) -> None:
        """Wait until the writer takes more."""
        while self.congested:
            await self._room.wait()

    async def _run(self) -> None:
        try:
            while self._full or self._filling is not None:
                if self._linger and not self._full:
                    await self._let_fill()
                while self._handed_over >= (_HANDED_OVER if self._full else 1):
                    self._moved.clear()
                    await self._moved.wait()  # meanwhile the batch fills
                try:
                    producer = await self._next_producer()
                except Exception as error:
                    self._refuse(self._next_batch(), error)
                else:
                    self._hand_over(self._next_batch(), producer)
        finally:
            self.task = None

    async def _let_fill(self) -> None:
        """Wait until a batch is full, or until its first record has lingered."""
        assert self._filling is not None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._filling.begun + self._linger):
                while not self._full:
                    self._moved.clear()
                    await self._moved.wait()

    async def _next_producer(self) -> IdempotentProducer:
        """The producer for the next batch, once it knows the partition and no other has a batch of it.

        Raises:
            Exception: the next batch cannot be sent.
        """
        loop = asyncio.get_running_loop()
        give_up_at: float | None = None
        while True:
            producer = await self._owner.ready(self._where)
            if self._handed_over and producer is not self._producer:
                self._moved.clear()
                await self._moved.wait()
                continue
            try:
                await producer.find(self._where)
            except UnknownTopicOrPartitionError:
                give_up_at = give_up_at or loop.time() + self._owner.patience
                if self._owner.is_current(producer, self._where):
                    if loop.time() > give_up_at:
                        raise
                    await self._owner.look_up(self._where)
                    await asyncio.sleep(_LOOK_AGAIN)
                continue
            except Exception:
                if self._owner.is_current(producer, self._where):
                    raise
            if self._owner.is_current(producer, self._where):
                return producer

    def _next_batch(self) -> _Batch:
        if self._full:
            batch = self._full.popleft()
        else:
            assert self._filling is not None
            batch, self._filling = self._filling, None
        self._give_room()
        return batch

    def _hand_over(self, batch: _Batch, producer: IdempotentProducer) -> None:
        close_batch(batch.builder, batch.count)
        self._producer = producer
        self._handed_over += 1

        def settle(error: BaseException | None) -> None:
            self._handed_over -= 1
            self._moved.set()
            if error is not None:
                self._refuse(batch, error)
            elif not batch.done.done():
                batch.done.set_result(None)

        def take_back() -> None:
            self._handed_over -= 1
            self._full.appendleft(batch)
            self._moved.set()
            self._start()

        producer.hand_over(batch.builder, self._where, settle, take_back)

    def _refuse(self, batch: _Batch, error: BaseException) -> None:
        if not batch.done.done():
            if isinstance(error, MessageSizeTooLargeError):
                self._owner.too_large(self.topic)
            problem = translate(error, "publish", f"on {self.topic!r}")
            if problem is not error:
                problem.__cause__ = error
            batch.done.set_exception(problem)

    def give_up(self, error: BusError) -> None:
        """Tell everyone who waits that nothing more will come."""
        if self.task is not None:
            self.task.cancel()
        for done in list(self.unfinished):
            if not done.done():
                done.set_exception(error)


class KafkaProducer:
    """An idempotent producer, replaced when the outcome of a batch is unknown or aiokafka's sender ends.

    Until the next producer has started, the broken one goes on with the partitions that it still can publish on. A partition
    moves to the next one when the broken one has no more batch of it, so order holds.
    """

    def __init__(
        self,
        settings: BusSettings,
        options: dict[str, Any],
        credentials: Credentials,
        new_session: Callable[[], int],
        topics: TopicDirectory,
        *,
        on_forgotten: Callable[[str], None],
    ) -> None:
        """``new_session`` gives ids of sessions, and ``on_forgotten`` is called with a topic whose writers are forgotten."""
        self._new_session = new_session
        self._session = 0
        self._on_forgotten = on_forgotten
        self._settings = settings
        self._options = options
        self._credentials = credentials
        self._topics = topics
        self._producer: IdempotentProducer | None = None
        self._former: dict[IdempotentProducer, asyncio.Task[None]] = {}
        self._ready = asyncio.Event()
        self._opening = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._written: dict[str, _Topic] = {}
        self._kept: Counter[str] = Counter()
        self._builders: Callable[[int], Any] | None = None
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Start the producer.

        Raises:
            BusError: Kafka cannot be reached or refuses.
        """
        kafka = self._settings.kafka
        client = AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            metadata_max_age_ms=_METADATA_AGE_MS,
            max_batch_size=kafka.tuning.batch_bytes,
            compression_type=None if kafka.compression == "none" else kafka.compression,
            max_request_size=max(self._settings.limits.max_message_bytes, kafka.tuning.batch_bytes) + 1024 * 1024,
        )
        take_over(client.client, self._credentials, self._seen)
        producer = IdempotentProducer(client, self._broken)
        try:
            await producer.start()
        except KafkaError as error:
            await run_shielded(producer.end())
            raise translate(error, "connect") from error
        except BaseException:
            await run_shielded(producer.end())
            raise
        former, self._producer = self._producer, producer
        if former is not None:
            former.replaced()
            self._former[former] = asyncio.create_task(self._retire(former), name="msight_bus former producer")
        self._builders = producer.new_builder
        self._ready.set()

    @property
    def patience(self) -> float:
        """Seconds that a message may wait for its partition."""
        return self._settings.limits.publish_timeout

    @property
    def is_open(self) -> bool:
        """Whether there ever was a producer; one that is being replaced counts."""
        return self._builders is not None

    async def ensure_open(self) -> None:
        """Start the producer at the first message: whoever only subscribes may not be permitted to have one.

        Raises:
            ConnectionLostError: Kafka did not answer within ``connect_timeout``.
            BusError: Kafka refuses.
        """
        if self.is_open:
            return
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout), self._opening:
                if not self.is_open:
                    await self.open()
        except TimeoutError as error:
            raise ConnectionLostError(
                f"Kafka started no producer within {self._settings.limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT)."
            ) from error

    def new_builder(self, topic: str) -> Any:
        """An empty batch, no larger than the topic takes."""
        assert self._builders is not None
        info = self._topics.known(topic)
        batch_bytes = self._settings.kafka.tuning.batch_bytes
        return self._builders(batch_bytes if info is None else min(batch_bytes, info.max_message_bytes))

    async def look_up(self, where: TopicPartition) -> None:
        """Look up anew the topic of a partition that a producer does not find; creates the topic if that is permitted.

        Raises:
            TopicError: it must not be created.
            KafkaError: it has fewer partitions.
            BusError: Kafka does not answer or refuses.
        """
        self._topics.forget(where.topic)
        info = await self._topics.ensure(where.topic)
        if where.partition >= info.partitions:
            raise UnknownTopicOrPartitionError(f"{where.topic!r} has no partition {where.partition} any more")

    def too_large(self, topic: str) -> None:
        """A batch was refused for its size: what the topic takes has changed."""
        self._topics.refresh_soon(topic)

    def _seen(self, topic: str, partitions: int) -> None:
        self._topics.seen(topic, partitions)
        gone = not partitions and self._topics.known(topic) is None
        if gone and topic not in self._looking and self._has_unfinished(topic):
            looking = asyncio.create_task(self._create_again(topic), name=f"msight_bus topic {topic}")
            self._looking[topic] = looking
            looking.add_done_callback(lambda _: self._looking.pop(topic, None))

    async def _create_again(self, topic: str) -> None:
        """Batches on their way need their topic; where it must not be created, they expire."""
        try:
            await self._topics.ensure(topic)
        except BusError as error:
            logger.warning("Messages on %s are on their way: %s", topic, error)
            await asyncio.sleep(self._settings.limits.reconnect_max)

    def _has_unfinished(self, topic: str) -> bool:
        return any(writer.unfinished for writer in self._all_writers(topic))

    async def ready(self, where: TopicPartition) -> IdempotentProducer:
        """The producer for a partition, once there is one that can publish on it."""
        while self._producer is None or not self._producer.takes(where):
            await self._ready.wait()
        return self._producer

    def is_current(self, producer: IdempotentProducer, where: TopicPartition) -> bool:
        """Whether a producer is still the one for a partition."""
        return producer is self._producer and producer.takes(where)

    def _broken(self, producer: IdempotentProducer, error: BaseException) -> None:
        if producer is self._producer:
            logger.warning("Publishing to Kafka failed, starting another producer: %s", str(error) or repr(error))
            self._ready.clear()
            if self._replacing is None or self._replacing.done():
                self._replacing = asyncio.create_task(self._replace(), name="msight_bus producer replacement")

    async def _replace(self) -> None:
        while not self._ready.is_set():
            try:
                async with asyncio.timeout(self._settings.limits.connect_timeout):
                    await self.open()
            except Exception as error:  # whatever it is, without a producer nothing is published
                logger.warning("No new producer yet: %s", str(error) or repr(error))
                await asyncio.sleep(self._settings.limits.reconnect_max)

    async def _retire(self, producer: IdempotentProducer) -> None:
        """End a producer when its last batch has an outcome."""
        await producer.settled(self._settings.limits.publish_timeout)
        await run_shielded(producer.end())
        self._former.pop(producer, None)

    def writer(self, topic: str, partition: int) -> PartitionWriter:
        """The queue of one partition."""
        written = self._written.get(topic) or self._begin(topic)
        writer = written.writers.get(partition)
        if writer is None:
            linger = self._settings.kafka.tuning.linger_ms / 1000
            writer = written.writers[partition] = PartitionWriter(topic, partition, self, written.counter, linger)
        return writer

    def _begin(self, topic: str) -> _Topic:
        if not self._session:
            self._session = self._new_session() or 1
        self._forget_surplus(len(self._written) + 1 - self._settings.limits.publisher_topics)
        written = self._written[topic] = _Topic(TopicCounter(topic, self._session), asyncio.get_running_loop().time())
        return written

    def _forget_surplus(self, count: int) -> None:
        """Forget so many idle topics, those that were used least recently; the first in place, unless used since."""
        for name, written in list(islice(self._written.items(), _LOOK_AT if count > 0 else 0)):
            if count <= 0:
                return
            used_at = max((writer.used_at for writer in written.writers.values()), default=0.0)
            idle = all(writer.is_idle for writer in written.writers.values())
            del self._written[name]
            if used_at > written.placed_at or not idle or self._kept[name]:
                written.placed_at = max(used_at, written.placed_at)
                self._written[name] = written  # behind all others
                continue
            count -= 1
            # a topic that comes back must not go on at sequence 1 of the same session
            self._session = self._new_session() or 1
            self._on_forgotten(name)

    def keep(self, topic: str) -> None:
        """Do not forget the topic until `let_go` is called as often."""
        self._kept[topic] += 1

    def let_go(self, topic: str) -> None:
        """The reverse of `keep`."""
        self._kept[topic] -= 1
        if not self._kept[topic]:
            del self._kept[topic]

    def _all_writers(self, topic: str | None = None) -> list[PartitionWriter]:
        """The writers of a topic, or of all."""
        if topic is not None:
            written = self._written.get(topic)
            return [] if written is None else list(written.writers.values())
        return [writer for written in self._written.values() for writer in written.writers.values()]

    async def flush(self, topic: str | None, within: float) -> bool:
        """Wait until everything on ``topic`` (or on all) is acknowledged; returns whether it was in time."""
        waiting = [done for writer in self._all_writers(topic) for done in writer.unfinished]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=within)
            return not late
        return True

    async def close(self, within: float) -> None:
        """Flush within ``within`` seconds, then end."""
        if self._producer is not None:
            await self.flush(None, within)
        await self.give_up(
            PublishTimeoutError("The bus closed before Kafka acknowledged a message; it may still arrive.")
        )

    async def give_up(self, error: BusError) -> None:
        """End at once; whoever still waits for an acknowledgement gets ``error``."""
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait((self._replacing,))
        for task in list(self._looking.values()):
            task.cancel()
        if self._looking:
            await asyncio.wait(self._looking.values())
        writing = [writer.task for writer in self._all_writers() if writer.task is not None]
        for writer in self._all_writers():
            writer.give_up(error)
        if writing:
            await asyncio.wait(writing)
        former, self._former = self._former, {}
        for task in former.values():
            task.cancel()
        if former:
            await asyncio.wait(former.values())
        producer, self._producer = self._producer, None
        for one in (*former, producer):
            if one is not None:
                await one.end()


def choose_partition(key: bytes, partitions: int) -> int:
    """The partition of a record with a key, as Kafka's own clients choose it (murmur2)."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def choose_unkeyed_partition(name: str, partitions: int) -> int:
    """The partition of records without a key, by their publisher's stable name."""
    return crc32(name.encode()) % partitions
