"""One bus's connection to Kafka, and its publishers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from msight_bus.backends.base import BLOCKED, Blocked, Inbox, Selection
from msight_bus.backends.kafka.aiokafka_compat import Client, MetadataRequest, check_aiokafka, record_bytes
from msight_bus.backends.kafka.client import client_options, probe
from msight_bus.backends.kafka.credentials import Credentials
from msight_bus.backends.kafka.errors import translate
from msight_bus.backends.kafka.feed import KafkaFeed
from msight_bus.backends.kafka.group import GroupFeed
from msight_bus.backends.kafka.live_view import LiveViewFeed
from msight_bus.backends.kafka.partition_writer import PartitionWriter
from msight_bus.backends.kafka.producer import KafkaProducer, choose_partition, choose_unkeyed_partition
from msight_bus.backends.kafka.records import RawHeaders, raw_headers, to_bytes
from msight_bus.backends.kafka.start import check_start
from msight_bus.backends.kafka.topics import DEFAULT_MAX_MESSAGE_BYTES, TopicDirectory, TopicInfo
from msight_bus.backends.kafka.watch import watch
from msight_bus.capabilities import Capabilities
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ConnectionLostError,
    MessageTooLargeError,
    PublishTimeoutError,
    aborted,
    fresh,
)
from msight_bus.events import BusEvent, Disconnected
from msight_bus.message import Message
from msight_bus.protocol import envelope
from msight_bus.settings import BusSettings
from msight_bus.tasks import Alarm, Gate, run_shielded

logger = logging.getLogger("msight_bus")

_METADATA_AGE_MS = 300_000
"""Milliseconds after which the cluster is asked again which partitions the topics have."""

_CONSUMER_METADATA_AGE_MS = 30_000

_RECORD_OVERHEAD = record_bytes(None, b"", [(envelope.HEADER, b"0" * 48)]) + 16


@dataclass(slots=True)
class _Route:
    """Where a publisher's messages without a key go on a topic.

    Attributes:
        writers: of its one partition, or of all where they are spread.
        surely_fits: a payload of this many bytes is under the limit, whatever its size takes to write down.
        only: the writer, if there is one only.
        at: counts messages, for the turns of several writers.
    """

    writers: list[PartitionWriter]
    surely_fits: int
    only: PartitionWriter | None
    at: int = 0

    def take_turn(self) -> PartitionWriter | None:
        """The next writer that takes a message, if there is one."""
        for _ in self.writers:
            writer = self.writers[self.at % len(self.writers)]
            self.at += 1
            if not writer.congested:
                return writer
        return None


class KafkaPublisher:
    """One publisher on one topic (backends.base.TopicPublisher). Order holds per key, so who waits, waits for its key."""

    def __init__(
        self,
        backend: KafkaBackend,
        topic: str,
        name: str | None,
        within: float,
        *,
        on_closed: Callable[[str], None] | None,
    ) -> None:
        """``within`` are seconds that a message may wait, and ``on_closed`` is called once, with the topic."""
        self._backend = backend
        self._topic = topic
        self._name = name
        self._within = within
        self._on_closed = on_closed
        self._gates: dict[str | None, Gate] = {}
        self.on_refused: Callable[[BusError, int], None] | None = None  # not called: each message has an outcome

    @property
    def counter(self) -> envelope.TopicCounter | None:
        """Session and sequence of the topic's last message; ``None`` before the first."""
        return self._backend.counter(self._topic)

    def try_send(
        self, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> asyncio.Future[None] | Blocked:
        """Add a record to its partition's batch, unless another one of its key waits."""
        if self._gates and key in self._gates:
            return BLOCKED
        return self._backend.publish(self._topic, payload, key, headers, self._name)

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> asyncio.Future[None]:
        """Add a record to its partition's batch when that takes more and those before it have had their turn."""
        gate = self._gates.setdefault(key, Gate())
        try:
            async with gate.turn(self._within):
                while True:
                    done = self._backend.publish(self._topic, payload, key, headers, self._name)
                    if not isinstance(done, Blocked):
                        return done
                    await self._backend.ready(self._topic, key, self._name)
        except TimeoutError as error:
            if isinstance(error, BusError):
                raise
            raise PublishTimeoutError(
                f"The messages before this one on {self._topic!r} could not be handed over within {self._within:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT)."
            ) from None
        finally:
            if not gate.waiting:
                self._gates.pop(key, None)

    async def flush(self) -> None:
        """Wait until the topic's records are acknowledged; each one's outcome is its future."""
        await self._backend.flush_topic(self._topic)

    def close(self) -> None:
        """The topic's counter may be forgotten."""
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(self._topic)


class KafkaBackend:
    """Kafka (backends.base.Backend)."""

    def __init__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._credentials = Credentials(settings.kafka)
        self._options = client_options(settings, self._credentials)
        self._new_session = new_session
        self._report = report
        self._client: Client | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_away = False
        self._routes: dict[str, dict[str | None, _Route]] = {}  # of each topic, by publisher
        self._feeds: set[KafkaFeed] = set()
        self._alarm = Alarm(self._abort)
        self._ending: asyncio.Task[None] | None = None
        self._refused: BusError | None = None  # what every call raises from now on
        self._refused_since: float | None = None

    def _heard(self, event: BusEvent) -> None:
        self._is_away = isinstance(event, Disconnected)
        self._report(event)

    @property
    def capabilities(self) -> Capabilities:
        """What Kafka does."""
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
        """Connect, and learn at once why if that fails."""
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
                f"{self._limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT). Is it Kafka that listens there? "
                "MSIGHT_KAFKA_SERVERS says where it is."
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

    def _seen(self, topic: str, partitions: int) -> None:
        self._directory.seen(topic, partitions)

    async def _ask(self) -> None:
        """Ask the cluster for a sign of life."""
        assert self._client is not None
        await self._client.ask(MetadataRequest([]), within=self._limits.pong_timeout)

    async def _probe(self) -> None:
        await probe(self._options | self._credentials())

    async def _probe_patiently(self) -> None:
        """Probe; where they come from files, believe a refusal only when it has lasted: rotation takes a moment."""
        try:
            await self._probe()
        except AuthenticationError as error:
            now = asyncio.get_running_loop().time()
            if self._refused_since is None:
                self._refused_since = now
            if not self._credentials.can_change or now - self._refused_since >= self._limits.refusal_patience:
                raise
            raise ConnectionLostError(f"Refused, trying again with the files as they are then: {error}") from error
        except BaseException:
            self._refused_since = None
            raise
        self._refused_since = None

    def publish(
        self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None, name: str | None
    ) -> asyncio.Future[None] | Blocked:
        """Add a record to its partition's batch; the future is the acknowledgement by all in-sync replicas."""
        if key is None and not headers:  # a stream's common case, with everything looked up before
            routes = self._routes.get(topic)
            route = None if routes is None else routes.get(name)
            if route is not None and len(payload) <= route.surely_fits:
                writer = route.only or route.take_turn()
                return BLOCKED if writer is None or writer.congested else writer.append(None, payload)
        self._check_permitted()
        info = self._directory.known(topic)
        if info is None or not self._producer.is_open:
            return BLOCKED
        record_key = None if key is None else to_bytes(key)
        user = [(header, to_bytes(value)) for header, value in headers.items()] if headers else []
        self._check_size(topic, info, record_key, payload, user)
        writer = self._writer(topic, info, record_key, name)
        return BLOCKED if writer is None else writer.append(record_key, payload, user)

    def _writer(self, topic: str, info: TopicInfo, key: bytes | None, name: str | None) -> PartitionWriter | None:
        """The writer of a message, unless it must wait."""
        if key is not None:
            writer = self._producer.writer(topic, choose_partition(key, info.partitions))
            return None if writer.congested else writer
        return self._route(topic, info, name).take_turn()

    def _route(self, topic: str, info: TopicInfo, name: str | None) -> _Route:
        routes = self._routes.setdefault(topic, {})
        route = routes.get(name)
        if route is None:
            partitions = range(info.partitions) if name is None else [choose_unkeyed_partition(name, info.partitions)]
            limit = min(info.max_message_bytes, self._limits.max_message_bytes)
            writers = [self._producer.writer(topic, partition) for partition in partitions]
            route = routes[name] = _Route(writers, limit - _RECORD_OVERHEAD, writers[0] if len(writers) == 1 else None)
        return route

    def _forget_routes(self, topic: str) -> None:
        self._routes.pop(topic, None)

    def _on_refused(self, error: AuthenticationError) -> None:
        """Kafka accepts these credentials no longer: whoever waits learns it at once."""
        self._refused = error
        self._routes.clear()
        self._ending = asyncio.create_task(self._give_up(error), name="msight_bus kafka end")

    def _check_permitted(self) -> None:
        if self._refused is not None:
            raise fresh(self._refused)

    async def _give_up(self, error: AuthenticationError) -> None:
        """The clients would try again for ever."""
        await asyncio.gather(self._producer.give_up(error), *(feed.give_up(error) for feed in list(self._feeds)))
        await self._directory.close()

    async def ready(self, topic: str, key: str | None, name: str | None) -> None:
        """Make sure that the topic exists, and wait until its partition takes more."""
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
                f"Kafka has acknowledged nothing on {topic!r} for {self._limits.publish_timeout:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT); this message was not sent."
            ) from None

    def _check_size(
        self, topic: str, info: TopicInfo, key: bytes | None, value: bytes | None, headers: RawHeaders
    ) -> None:
        size = record_bytes(key, value, [(envelope.HEADER, b"0" * 48), *headers])
        limit = min(info.max_message_bytes, self._limits.max_message_bytes)
        if size > limit:
            raise MessageTooLargeError(
                f"The message takes {size} bytes with its headers and topic {topic!r} takes {limit} "
                "(max.message.bytes of the topic, or MSIGHT_MAX_MESSAGE_BYTES).",
                size=size,
                limit=limit,
            )

    def publisher(self, topic: str, name: str | None, *, keeps: bool) -> KafkaPublisher:
        """A publisher on ``topic``."""
        if keeps:
            self._producer.keep(topic)
        return KafkaPublisher(
            self, topic, name, self._limits.publish_timeout, on_closed=self._producer.let_go if keeps else None
        )

    def counter(self, topic: str) -> envelope.TopicCounter | None:
        """Session and last sequence of a topic, ``None`` if nothing was published on it."""
        return self._producer.counter(topic)

    async def flush(self) -> None:
        """Wait until everything is acknowledged; whoever published holds the outcome."""
        if not await self._producer.flush(None, self._limits.publish_timeout):
            raise PublishTimeoutError(
                f"Kafka has not acknowledged what was published within {self._limits.publish_timeout:g} s; it may still arrive."
            )

    async def flush_topic(self, topic: str) -> None:
        """Wait until everything on ``topic`` is acknowledged."""
        if not await self._producer.flush(topic, self._limits.publish_timeout):
            raise PublishTimeoutError(
                f"Kafka has not acknowledged what was published on {topic!r} within {self._limits.publish_timeout:g} s; it may "
                "still arrive."
            )

    async def subscribe(self, selection: Selection, inbox: Inbox) -> KafkaFeed:
        """Join the group, or take all partitions where there is none."""
        self._check_permitted()
        info = await self._directory.ensure(selection.topics[0])
        check_start(selection.start, selection.topics[0], info.partitions)
        client = Client(self._credentials, metadata_max_age_ms=_CONSUMER_METADATA_AGE_MS, **self._options)
        arguments = (selection, inbox, self._settings, client, self._dead_letter)
        group_id = selection.group_id
        feed = LiveViewFeed(*arguments) if group_id is None else GroupFeed(group_id, *arguments)
        self._feeds.add(feed)
        feed.on_closed = lambda: self._feed_closed(feed)
        feed.left = self._alarm.left
        try:
            await feed.start()
        except KafkaError as error:
            await run_shielded(feed.close())
            raise translate(error, "subscribe", f"on {selection.topics[0]!r}") from error
        except BaseException:
            await run_shielded(feed.close())
            raise
        return feed

    def _feed_closed(self, feed: KafkaFeed) -> None:
        self._feeds.discard(feed)
        if self._producer.counter(feed.topic) is None:
            self._directory.forget(feed.topic)

    async def _dead_letter(self, message: Message) -> bool:
        partition, offset = message.position or (0, 0)
        why = {"msight-dead-topic": message.topic, "msight-dead-position": f"{partition}:{offset}"}
        return await self.dead_letter(message, message.topic + self._settings.kafka.dead_letter_suffix, why)

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Pass a record on as it came (backends.base.DeadLetterBackend)."""
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
        while done is BLOCKED:
            info = await self._directory.ensure(topic)
            await self._producer.ensure_open()
            record_key = None if key is None else to_bytes(key)
            self._check_size(topic, info, record_key, value, headers)
            writer = self._writer(topic, info, record_key, None)
            if writer is not None:
                done = writer.append(record_key, value, headers)
            else:
                await self.ready(topic, key, None)
        assert isinstance(done, asyncio.Future)
        finished, _ = await asyncio.wait((done,), timeout=self._limits.publish_timeout)
        if not finished:
            raise PublishTimeoutError(f"Kafka did not acknowledge a dead letter on {topic!r} in time.")
        done.result()

    def abort_at(self, when: float | None) -> None:
        """Give up what is not acknowledged at ``when`` (`Backend.abort_at`); feeds that close wait no longer either."""
        self._alarm.set(when)

    def _abort(self) -> None:
        self._refused = aborted()
        self._routes.clear()
        self._producer.abort(self._refused)

    async def close(self) -> None:
        """Flush within the drain deadline and end every client."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        if self._ending is not None:
            await asyncio.wait((self._ending,))
        if self._client is None:
            return
        # Whoever drained has already waited for a broker that is away.
        within = self._limits.pong_timeout if self._is_away else self._limits.drain_timeout
        await self._producer.close(self._alarm.left(within))
        await self._directory.close()
        await self._client.aclose()
        self._alarm.set(None)
