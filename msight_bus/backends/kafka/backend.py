"""The Kafka backend of one bus, and its publishers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from msight_bus.backends.base import BLOCKED, Blocked, Inbox, Selection
from msight_bus.backends.kafka.aiokafka_compat import Client, MetadataRequest, check_aiokafka, record_bytes
from msight_bus.backends.kafka.client import client_options, probe
from msight_bus.backends.kafka.consumer import KafkaConsumer
from msight_bus.backends.kafka.credentials import Credentials
from msight_bus.backends.kafka.errors import translate
from msight_bus.backends.kafka.fetch_failures import FetchFailures
from msight_bus.backends.kafka.group import GroupConsumer
from msight_bus.backends.kafka.liveness import watch
from msight_bus.backends.kafka.manual_assignment import ManualAssignmentConsumer
from msight_bus.backends.kafka.partition_writer import PartitionWriter
from msight_bus.backends.kafka.producer import KafkaProducer, choose_partition, choose_unkeyed_partition
from msight_bus.backends.kafka.records import RawHeaders, raw_headers, to_bytes
from msight_bus.backends.kafka.start_offsets import check_start
from msight_bus.backends.kafka.topics import DEFAULT_MAX_MESSAGE_BYTES, TopicDirectory, TopicInfo
from msight_bus.capabilities import Capabilities
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ConnectionLostError,
    MessageTooLargeError,
    PublishTimeoutError,
    TopicError,
    aborted,
    fresh,
)
from msight_bus.events import BusEvent, Disconnected
from msight_bus.message import Message
from msight_bus.protocol import envelope
from msight_bus.settings import BusSettings
from msight_bus.tasks import Alarm, Gate, run_shielded
from msight_bus.topics import quoted_topic

logger = logging.getLogger("msight_bus")

_METADATA_AGE_MS = 300_000
"""Milliseconds between two updates of the publishing client's metadata."""

_CONSUMER_METADATA_AGE_MS = 30_000
"""Milliseconds between two updates of the metadata of each consumer's client."""

_KAFKA_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}")
_RECORD_OVERHEAD = record_bytes(None, b"", [(envelope.HEADER, b"0" * 48)]) + 16


@dataclass(slots=True)
class _Route:
    """The partitions for a publisher's messages without a key on one topic.

    Attributes:
        writers: the writer of one partition; with ``spread``, those of the available partitions.
        surely_fits: maximum payload size, in bytes, that needs no exact check against the limit.
        only: the writer, if there is only one.
        at: number of writers examined so far, for the round robin.
    """

    writers: list[PartitionWriter]
    surely_fits: int
    only: PartitionWriter | None
    at: int = 0

    def take_turn(self) -> PartitionWriter | None:
        """Return the next writer that is not congested; ``None`` if all are."""
        for _ in self.writers:
            writer = self.writers[self.at % len(self.writers)]
            self.at += 1
            if not writer.congested:
                return writer
        return None


class KafkaPublisher:
    """One publisher on one topic (backends.base.TopicPublisher). A message waits only for earlier messages with its key."""

    def __init__(
        self,
        backend: KafkaBackend,
        topic: str,
        name: str | None,
        within: float,
        *,
        alone: bool,
        on_closed: Callable[[str], None] | None,
    ) -> None:
        """
        Args:
            backend: the backend, which owns the writers.
            topic: the topic to publish on.
            name: the publisher's stable name, which selects the partition of messages without a key; ``None`` to spread them.
            within: seconds that a message may wait.
            alone: whether each message has an acknowledgement of its own, as for `Bus.publish`, whose caller waits for each.
            on_closed: called once, with the topic.
        """
        self._backend = backend
        self._topic = topic
        self._name = name
        self._within = within
        self._alone = alone
        self._on_closed = on_closed
        self._gates: dict[str | None, Gate] = {}
        self.on_refused: Callable[[BusError, int], None] | None = None  # never called: each message has its own outcome

    @property
    def counter(self) -> envelope.TopicCounter | None:
        """Session and sequence of the topic's last message; ``None`` before the first."""
        return self._backend.counter(self._topic)

    def try_send(
        self, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> asyncio.Future[None] | Blocked:
        """Add a record to its partition's batch; ``BLOCKED`` if the writer is congested or a record with the key waits."""
        if self._gates and key in self._gates:
            return BLOCKED
        return self._backend.publish(self._topic, payload, key, headers, self._name, alone=self._alone)

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> asyncio.Future[None]:
        """Add a record to its partition's batch, after earlier records with the same key and once the writer is not congested.

        Returns:
            The acknowledgement.

        Raises:
            PublishTimeoutError: earlier records with the key were not added within ``publish_timeout`` seconds.
        """
        gate = self._gates.setdefault(key, Gate())
        try:
            async with gate.turn(self._within):
                while True:
                    done = self._backend.publish(self._topic, payload, key, headers, self._name, alone=self._alone)
                    if not isinstance(done, Blocked):
                        return done
                    await self._backend.ready(self._topic, key, self._name)
        except TimeoutError as error:
            if isinstance(error, BusError):
                raise
            raise PublishTimeoutError(
                f"Earlier messages on {self._topic!r} were not accepted within {self._within:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT); this message was not sent."
            ) from None
        finally:
            if not gate.waiting:
                self._gates.pop(key, None)

    async def flush(self) -> None:
        """Wait until all records on the topic are acknowledged; their futures have the outcomes."""
        await self._backend.flush(self._topic)

    def close(self) -> None:
        """Allow the topic's counter to be evicted."""
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(self._topic)


class KafkaBackend:
    """Kafka (backends.base.Backend)."""

    def __init__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> None:
        settings.topic_map.check_for("Kafka", _KAFKA_TOPIC, "of 1 to 249 letters, digits, '.', '_' and '-'")
        self._settings = settings
        self._limits = settings.limits
        self._credentials = Credentials(settings.kafka)
        self._options = client_options(settings, self._credentials)
        self._new_session = new_session
        self._report = report
        self._client: Client | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_disconnected = False
        self._routes: dict[str, dict[str | None, _Route]] = {}  # of each topic, by publisher
        self._consumers: set[KafkaConsumer] = set()
        self._failures = FetchFailures()
        self._alarm = Alarm(self._abort)
        self._ending: asyncio.Task[None] | None = None
        self._refused: BusError | None = None  # the error that every further call raises
        self._refused_since: float | None = None

    def _heard(self, event: BusEvent) -> None:
        self._is_disconnected = isinstance(event, Disconnected)
        self._report(event)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of Kafka."""
        return Capabilities(
            persistence=True,
            delivery="at-least-once",
            routing="queue group",
            load_balancing=True,
            replay=True,
            acknowledgement=True,
            native_headers=True,
            tail_loss=True,
            max_message_bytes=min(DEFAULT_MAX_MESSAGE_BYTES, self._limits.max_message_bytes),
        )

    async def open(self) -> None:
        """Connect.

        Raises:
            ConnectionLostError: no server can be reached within ``connect_timeout`` seconds.
            AuthenticationError: credentials or certificate were refused.
            BusError: the installed aiokafka cannot be used.
        """
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                check_aiokafka()
                await self._probe()
                await self._connect()
            watching = watch(self._ask, self._probe_patiently, self._limits, self._heard, self._on_refused)
            self._watching = asyncio.create_task(watching, name="msight_bus kafka watch")
        except TimeoutError as error:
            raise ConnectionLostError(
                f"Kafka at {', '.join(map(str, self._settings.kafka.servers))} did not answer within "
                f"{self._limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT). Check that MSIGHT_KAFKA_SERVERS names Kafka "
                "servers."
            ) from error

    async def _connect(self) -> None:
        self._client = client = Client(
            self._credentials, seen=self._seen, metadata_max_age_ms=_METADATA_AGE_MS, **self._options
        )
        self._directory = TopicDirectory(self._settings, client, self._forget_routes)
        self._producer = KafkaProducer(
            self._settings, client, self._directory, self._new_session, on_forgotten=self._directory.forget
        )
        try:
            await client.bootstrap()
        except KafkaError as error:
            raise translate(error, "connect") from error

    def _seen(self, topic: str, partitions: dict[int, bool]) -> None:
        self._directory.seen(topic, partitions)

    async def _ask(self) -> None:
        """Send a metadata request, as a liveness check."""
        assert self._client is not None
        await self._client.ask(MetadataRequest([]), within=self._limits.pong_timeout)

    async def ping(self) -> None:
        """Wait for the response to one metadata request (`Backend.ping`).

        Raises:
            ConnectionLostError: no broker responded.
        """
        try:
            await self._ask()
        except (KafkaError, OSError) as error:
            raise translate(error, "connect") from error

    async def _probe(self) -> None:
        await probe(self._options | self._credentials())

    async def _probe_patiently(self) -> None:
        """Probe the servers; retry a refusal for ``refusal_patience`` seconds where files can change: they may be in rotation."""
        try:
            await self._probe()
        except AuthenticationError as error:
            now = asyncio.get_running_loop().time()
            if self._refused_since is None:
                self._refused_since = now
            if not self._credentials.can_change or now - self._refused_since >= self._limits.refusal_patience:
                raise
            raise ConnectionLostError(f"Refused; retrying with the current credential files: {error}") from error
        except BaseException:
            self._refused_since = None
            raise
        self._refused_since = None

    def publish(
        self,
        topic: str,
        payload: bytes,
        key: str | None,
        headers: Mapping[str, str] | None,
        name: str | None,
        *,
        alone: bool,
    ) -> asyncio.Future[None] | Blocked:
        """Add a record to its partition's batch.

        Returns:
            The acknowledgement by all in-sync replicas, or ``BLOCKED`` if the topic is unknown or its writer congested.

        Raises:
            MessageTooLargeError: the record exceeds the topic's or the bus's limit.
            AuthenticationError: Kafka has refused the credentials.
        """
        if key is None and not headers:  # the common case, with a cached route
            routes = self._routes.get(topic)
            route = None if routes is None else routes.get(name)
            if route is not None and len(payload) <= route.surely_fits:
                writer = route.only or route.take_turn()
                return BLOCKED if writer is None or writer.congested else writer.append(None, payload, alone=alone)
        self._check_permitted()
        info = self._directory.known(topic)
        if info is None or not self._producer.is_open:
            return BLOCKED
        record_key = None if key is None else to_bytes(key)
        user = [(header, to_bytes(value)) for header, value in headers.items()] if headers else []
        self._check_size(topic, info, record_key, payload, user)
        writer = self._writer(topic, info, record_key, name)
        return BLOCKED if writer is None else writer.append(record_key, payload, user, alone=alone)

    def _writer(self, topic: str, info: TopicInfo, key: bytes | None, name: str | None) -> PartitionWriter | None:
        """Return the writer of a message; ``None`` if it is congested."""
        if key is not None:
            writer = self._producer.writer(topic, choose_partition(key, info.partitions))
            return None if writer.congested else writer
        return self._route(topic, info, name).take_turn()

    def _route(self, topic: str, info: TopicInfo, name: str | None) -> _Route:
        routes = self._routes.setdefault(topic, {})
        route = routes.get(name)
        if route is None:
            partitions = info.available if name is None else (choose_unkeyed_partition(name, info.partitions),)
            limit = min(info.max_message_bytes, self._limits.max_message_bytes)
            writers = [self._producer.writer(topic, partition) for partition in partitions]
            route = routes[name] = _Route(writers, limit - _RECORD_OVERHEAD, writers[0] if len(writers) == 1 else None)
        return route

    def _forget_routes(self, topic: str) -> None:
        self._routes.pop(topic, None)

    def _on_refused(self, error: AuthenticationError) -> None:
        """Fail every pending publish and every subscription: Kafka refuses the credentials."""
        self._refused = error
        self._routes.clear()
        self._ending = asyncio.create_task(self._give_up(error), name="msight_bus kafka end")

    def _check_permitted(self) -> None:
        if self._refused is not None:
            raise fresh(self._refused)

    async def _give_up(self, error: AuthenticationError) -> None:
        """Stop the producer and the consumers, which would retry without a limit."""
        await asyncio.gather(
            self._producer.give_up(error), *(consumer.give_up(error) for consumer in list(self._consumers))
        )
        await self._directory.close()

    async def ready(self, topic: str, key: str | None, name: str | None) -> None:
        """Create the topic if it does not exist, and wait until the writer of the partition is not congested.

        Raises:
            PublishTimeoutError: Kafka acknowledged no record of the partition for ``publish_timeout`` seconds.
            BusError: the topic or the producer cannot be used.
        """
        info = await self._directory.ensure(topic)
        await self._producer.ensure_open()
        if key is None:
            route = self._route(topic, info, name)
            writer = next((one for one in route.writers if not one.congested), route.writers[0])
        else:
            writer = self._producer.writer(topic, choose_partition(to_bytes(key), info.partitions))
        try:
            async with asyncio.timeout(self._limits.publish_timeout):
                await writer.room()
        except TimeoutError:
            raise PublishTimeoutError(
                f"Kafka acknowledged no message on {topic!r} for {self._limits.publish_timeout:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT); this message was not sent."
            ) from None

    def _check_size(
        self, topic: str, info: TopicInfo, key: bytes | None, value: bytes | None, headers: RawHeaders
    ) -> None:
        size = record_bytes(key, value, [(envelope.HEADER, b"0" * 48), *headers])
        limit = min(info.max_message_bytes, self._limits.max_message_bytes)
        if size > limit:
            raise MessageTooLargeError(
                f"The message has {size} bytes with its headers; topic {topic!r} accepts at most {limit} "
                "(max.message.bytes of the topic, or MSIGHT_MAX_MESSAGE_BYTES).",
                size=size,
                limit=limit,
            )

    def check_topic(self, entry: str) -> None:
        """Refuse ``/``, which a Kafka topic cannot have (`Backend.check_topic`).

        Raises:
            TopicError: the name has a ``/``.
        """
        if "/" in entry:
            raise TopicError(
                f"{quoted_topic(entry)} is not a valid topic on Kafka, which does not accept '/'. Use '.' instead, for example "
                f"{quoted_topic(entry.replace('/', '.'))}.",
                topic=entry,
            )

    @property
    def is_connected(self) -> bool:
        """Whether Kafka responds."""
        return not self._is_disconnected

    @property
    def published(self) -> Iterator[envelope.TopicCounter]:
        """The counters of the topics that the bus has published on (`Backend.published`)."""
        return self._producer.counters()

    def publisher(self, topic: str, name: str | None, *, keeps: bool, creates: bool = True) -> KafkaPublisher:
        """Return a publisher on ``topic``; see `backends.base.Backend`."""
        if creates:
            self._directory.not_created.discard(topic)
        else:
            self._directory.not_created.add(topic)
        if keeps:
            self._producer.keep(topic)
        return KafkaPublisher(
            self,
            topic,
            name,
            self._limits.publish_timeout,
            alone=not keeps,
            on_closed=self._producer.release if keeps else None,
        )

    def counter(self, topic: str) -> envelope.TopicCounter | None:
        """Session and last sequence of a topic; ``None`` if nothing was published on it."""
        return self._producer.counter(topic)

    async def flush(self, topic: str | None = None) -> None:
        """Wait until all records, or those on ``topic``, are acknowledged; their futures have the outcomes.

        Raises:
            PublishTimeoutError: that took longer than ``publish_timeout`` seconds.
        """
        if not await self._producer.flush(topic, self._limits.publish_timeout):
            on = "" if topic is None else f" on {topic!r}"
            raise PublishTimeoutError(
                f"Kafka did not acknowledge all messages{on} within {self._limits.publish_timeout:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT); they may still arrive."
            )

    async def subscribe(self, selection: Selection, inbox: Inbox) -> KafkaConsumer:
        """Join the group of ``selection``; without a group, consume all partitions.

        Raises:
            TopicError: a topic is missing and must not be created.
            AuthenticationError: the user may not read a topic or join the group.
            ConnectionLostError: Kafka or the group's coordinator did not respond in time.
            ValueError: ``selection.start`` names a partition that a topic does not have.
        """
        self._check_permitted()
        for topic, partitions in (await self._directory.create(selection.topics)).items():
            check_start(selection.start, topic, partitions)
        client = Client(self._credentials, metadata_max_age_ms=_CONSUMER_METADATA_AGE_MS, **self._options)
        arguments = (selection, inbox, self._settings, client, self._dead_letter)
        group_id = selection.group_id
        consumer = ManualAssignmentConsumer(*arguments) if group_id is None else GroupConsumer(group_id, *arguments)
        self._consumers.add(consumer)
        consumer.on_closed = lambda: self._consumers.discard(consumer)
        consumer.left = self._alarm.left
        consumer.failures = self._failures
        try:
            await consumer.start()
        except KafkaError as error:
            await run_shielded(consumer.close())
            raise translate(error, "subscribe", f"on {selection.name!r}") from error
        except BaseException:
            await run_shielded(consumer.close())
            raise
        return consumer

    async def _dead_letter(self, message: Message) -> bool:
        partition, offset = message.position or (0, 0)
        why = {"msight-dead-topic": message.topic, "msight-dead-position": f"{partition}:{offset}"}
        return await self.dead_letter(message, message.topic + self._settings.dead_letter_suffix, why)

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a record unchanged, with the headers ``why`` (backends.base.DeadLetterBackend)."""
        value = None if message.tombstone else message.payload
        headers = raw_headers(message)
        marks = [(name, text.encode()) for name, text in why.items()]
        try:
            try:
                await self._publish_and_wait(topic, message.key, value, [*headers, *marks])
            except MessageTooLargeError:
                if not headers:
                    raise
                await self._publish_and_wait(topic, message.key, value, [*marks, ("msight-dead-headers", b"omitted")])
        except (PublishTimeoutError, ConnectionLostError):
            raise
        except BusError as error:
            problem = error
        else:
            return True
        partition, offset = message.position or (0, 0)
        logger.error(
            "Dead letter not published on %s; topic %s, partition %d, offset %d: %s",
            topic,
            message.topic,
            partition,
            offset,
            problem,
        )
        return False

    async def _publish_and_wait(self, topic: str, key: str | None, value: bytes | None, headers: RawHeaders) -> None:
        done: asyncio.Future[None] | Blocked = BLOCKED
        topic = self._settings.topic_map.on_broker(topic)
        while done is BLOCKED:
            info = await self._directory.ensure(topic)
            await self._producer.ensure_open()
            record_key = None if key is None else to_bytes(key)
            self._check_size(topic, info, record_key, value, headers)
            writer = self._writer(topic, info, record_key, None)
            if writer is not None:
                done = writer.append(record_key, value, headers, alone=True)
            else:
                await self.ready(topic, key, None)
        assert isinstance(done, asyncio.Future)
        finished, _ = await asyncio.wait((done,), timeout=self._limits.publish_timeout)
        if not finished:
            raise PublishTimeoutError(
                f"Kafka did not acknowledge a dead letter on {topic!r} within {self._limits.publish_timeout:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT); it may still arrive."
            )
        done.result()

    def abort_at(self, when: float | None) -> None:
        """Fail what is not acknowledged at ``when`` (`Backend.abort_at`); consumers that close stop waiting too."""
        self._alarm.set(when)

    def _abort(self) -> None:
        self._refused = aborted()
        self._routes.clear()
        self._producer.abort(self._refused)

    async def close(self) -> None:
        """Flush for at most ``drain_timeout`` seconds and close the connections."""
        self._failures.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        if self._ending is not None:
            await asyncio.wait((self._ending,))
        if self._client is None:
            return
        # While the broker is down, `Bus.drain` has already waited.
        within = self._limits.pong_timeout if self._is_disconnected else self._limits.drain_timeout
        await self._producer.close(self._alarm.left(within))
        await self._directory.close()
        await self._client.aclose()
        self._alarm.set(None)
