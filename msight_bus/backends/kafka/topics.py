"""The topics of a cluster: partitions, size limits, and creation at first use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from msight_bus.backends.kafka.aiokafka_compat import (
    Client,
    CreateTopicsRequest,
    DescribeConfigsRequest,
    MetadataRequest,
    read_partitions,
)
from msight_bus.backends.kafka.errors import REFUSED, error_for, translate
from msight_bus.errors import BusError, ConnectionLostError, TopicError, counted
from msight_bus.patterns import named
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
"""Kafka's default ``message.max.bytes`` (broker configuration reference)."""


_TOPIC = 2
"""Resource type TOPIC of a DescribeConfigs request."""


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """A topic, from the cluster's metadata.

    Attributes:
        partitions: each partition and whether it has a leader; empty if the topic does not exist.
        replicas: number of replicas of the least replicated partition.
        brokers: number of brokers in the cluster.
    """

    partitions: dict[int, bool]
    replicas: int
    brokers: int


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that exists.

    Attributes:
        partitions: number of partitions.
        max_message_bytes: the topic's ``max.message.bytes``.
        available: the partitions that have a leader; all of them if none has.
    """

    partitions: int
    max_message_bytes: int
    available: tuple[int, ...]


def _available(partitions: dict[int, bool]) -> tuple[int, ...]:
    """Return the partitions that have a leader; all of them if none has."""
    return tuple(sorted(number for number, has_leader in partitions.items() if has_leader)) or tuple(sorted(partitions))


_LOOK_ANEW_AFTER = 240.0
"""Seconds after which the next metadata response that names a topic causes another look-up."""


class TopicDirectory:
    """Caches the topics that exist.

    A topic is looked up before its first use, and again when a metadata response reports another number of partitions or when
    the last look-up is older than 4 minutes.

    Attributes:
        not_created: topics that are not created if they do not exist.
    """

    def __init__(self, settings: BusSettings, client: Client, changed: Callable[[str], None]) -> None:
        """
        Args:
            settings: the settings of the bus.
            client: the connections to ask.
            changed: called with each topic that is removed from the cache, or whose partitions or limits have changed.
        """
        self._settings = settings
        self._client = client
        self._changed = changed
        self._known: dict[str, TopicInfo] = {}
        self._looked_up: dict[str, float] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self.not_created: set[str] = set()

    def known(self, topic: str) -> TopicInfo | None:
        """Return a cached topic; ``None`` if it is not cached."""
        return self._known.get(topic)

    def forget(self, topic: str) -> None:
        """Remove a topic from the cache: it is looked up at its next use."""
        if self._known.pop(topic, None) is not None:
            del self._looked_up[topic]
            self._changed(topic)

    def seen(self, topic: str, partitions: dict[int, bool]) -> None:
        """Compare a metadata response with the cache.

        Args:
            topic: of the response.
            partitions: each partition and whether it has a leader; empty for a missing topic.
        """
        info = self._known.get(topic)
        if info is None:
            return
        if (
            len(partitions) != info.partitions
            or asyncio.get_running_loop().time() - self._looked_up[topic] > _LOOK_ANEW_AFTER
        ):
            self.refresh_soon(topic)  # the metadata of this broker may be out of date
        elif (available := _available(partitions)) != info.available:
            self._known[topic] = replace(info, available=available)
            self._changed(topic)

    def refresh_soon(self, topic: str) -> None:
        """Look a cached topic up again, in a background task."""
        if topic in self._known and topic not in self._refreshing:
            self._looked_up[topic] = asyncio.get_running_loop().time()
            task = asyncio.create_task(self._refresh(topic), name=f"msight_bus topic {topic}")
            self._refreshing[topic] = task
            task.add_done_callback(lambda _: self._refreshing.pop(topic, None))

    async def _refresh(self, topic: str) -> None:
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout), self._lock:
                found = (await self._metadata([topic]))[topic]
                if not found.partitions:
                    logger.warning("Topic %s was deleted.", topic)
                    self.forget(topic)
                    return
                info = await self._describe(topic, found)
        except (KafkaError, OSError, BusError) as error:  # the next metadata response starts another look-up
            logger.debug("Topic %s could not be looked up again: %s", topic, error)
            return
        former = self._known.get(topic)
        if former is None or former == info:
            return
        self._known[topic] = info
        if info.partitions != former.partitions:
            logger.warning(
                "Topic %s has %s now, %d before: keys, and publishers without a key, may move to another partition. "
                "Order does not hold across the change.",
                topic,
                counted(info.partitions, "partition"),
                former.partitions,
            )
        if info.max_message_bytes != former.max_message_bytes:
            logger.warning(
                "Topic %s accepts messages of at most %d bytes now, %d before (max.message.bytes).",
                topic,
                info.max_message_bytes,
                former.max_message_bytes,
            )
        self._changed(topic)

    async def ensure(self, topic: str) -> TopicInfo:
        """Return a topic, from the cache or the cluster; create it if it does not exist.

        Raises:
            TopicError: the topic is missing and MSIGHT_KAFKA_CREATE_TOPICS is false, or its name collides with another topic's.
            ConnectionLostError: Kafka did not answer within ``connect_timeout`` seconds.
            AuthenticationError: the user is not permitted to describe or create the topic.
        """
        info = self._known.get(topic)
        if info is None:
            async with self._asking((topic,)):
                info = self._known.get(topic) or await self._look_up(topic)
        return info

    async def create(self, topics: Sequence[str]) -> dict[str, int]:
        """Return the number of partitions of each topic; create those that do not exist, and cache none.

        Raises:
            TopicError, ConnectionLostError, AuthenticationError: see `ensure`.
        """
        found = {topic: info.partitions for topic in topics if (info := self._known.get(topic)) is not None}
        wanted = [topic for topic in topics if topic not in found]
        if wanted:
            async with self._asking(wanted):
                found |= {topic: len(each.partitions) for topic, each in (await self._find_or_create(wanted)).items()}
        return found

    @asynccontextmanager
    async def _asking(self, topics: Sequence[str]) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout), self._lock:
                yield
        except TimeoutError:
            raise ConnectionLostError(
                f"Kafka did not answer a request for topic {named(list(map(repr, topics)), 1)} within "
                f"{self._settings.limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT)."
            ) from None
        except KafkaError as error:
            raise translate(error, "administer") from error

    async def _metadata(self, topics: Sequence[str]) -> dict[str, TopicMetadata]:
        """Ask the cluster for the metadata of topics, without creating a topic.

        Raises:
            KafkaError: no broker responded, or the user may not describe a topic.
        """
        response = await self._client.ask(MetadataRequest(list(topics), allow_auto_topic_creation=False))
        brokers = len(response.brokers)
        found = dict.fromkeys(topics, TopicMetadata({}, 0, brokers))
        for code, name, *_, partitions in response.topics:
            if name in found and code == 0 and partitions:
                found[name] = TopicMetadata(
                    read_partitions(partitions), min(len(partition[3]) for partition in partitions), brokers
                )
            elif name in found and error_for(code) in REFUSED:
                raise error_for(code)(name)
        return found

    async def _look_up(self, topic: str) -> TopicInfo:
        found = (await self._find_or_create([topic]))[topic]
        looked_up = asyncio.get_running_loop().time()
        info = self._known[topic] = await self._describe(topic, found, warn=True)
        self._looked_up[topic] = looked_up
        return info

    async def _find_or_create(self, topics: Sequence[str]) -> dict[str, TopicMetadata]:
        found = await self._metadata(topics)
        missing = [topic for topic in topics if not found[topic].partitions]
        if missing:
            await self._create(missing)
        while missing:
            found |= await self._metadata(missing)
            missing = [topic for topic in missing if not found[topic].partitions]
            if missing:
                await asyncio.sleep(0.02)  # this broker does not know the topic yet; bounded by the caller's deadline
        return found

    async def _describe(self, topic: str, found: TopicMetadata, *, warn: bool = False) -> TopicInfo:
        options = await self._options_of(topic)
        if warn:
            self._warn_if_weak(topic, found, options.get("min.insync.replicas"))
        limit = int(options.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))
        return TopicInfo(len(found.partitions), limit, _available(found.partitions))

    def _warn_if_weak(self, topic: str, found: TopicMetadata, insync: str | None) -> None:
        """Log a WARNING if the loss of one broker of a cluster can lose acknowledged messages; ``insync`` is None if unknown."""
        is_weak = found.replicas < 3 or insync == "1"
        if found.brokers > 1 and is_weak and not topic.startswith("_"):
            logger.warning(
                "Topic %s has %s and min.insync.replicas=%s on a cluster of %d brokers: the loss of one broker can "
                "lose acknowledged messages. Use 3 replicas (MSIGHT_KAFKA_REPLICATION) and min.insync.replicas=2.",
                topic,
                counted(found.replicas, "replica"),
                insync or "?",
                found.brokers,
            )

    async def _create(self, topics: Sequence[str]) -> None:
        kafka = self._settings.kafka
        for topic in self.not_created.intersection(topics):
            raise TopicError(f"The topic {topic!r} does not exist, and this publisher does not create it.", topic=topic)
        cluster = await self._client.ask(MetadataRequest(None, allow_auto_topic_creation=False))
        similar = {other.replace(".", "_"): other for _, other, *_ in cluster.topics}
        for topic in topics:
            other = similar.setdefault(topic.replace(".", "_"), topic)
            if other != topic:
                raise TopicError(
                    f"The topic {topic!r} collides with the topic {other!r}: Kafka replaces '.' by '_' in metric names and "
                    "accepts only one of the two. Choose another name.",
                    topic=topic,
                )
            if not kafka.create_topics:
                raise TopicError(
                    f"The topic {topic!r} does not exist and MSIGHT_KAFKA_CREATE_TOPICS is false. Create the topic, or set the "
                    "variable to true.",
                    topic=topic,
                )
        counts = {topic: 1 if topic.startswith("_") else kafka.partitions for topic in topics}
        replication = -1 if kafka.replication is None else kafka.replication
        timeout = int(self._settings.limits.connect_timeout * 1000)
        new: list[Any] = [(topic, count, replication, [], []) for topic, count in counts.items()]
        # Begin with the controller; other brokers of a KRaft cluster forward the request (KIP-590).
        response = await self._client.ask(CreateTopicsRequest(new, timeout, False), first=cluster.controller_id)
        for topic, code, *details in response.topic_errors:
            error = error_for(code)
            if code and error is not TopicAlreadyExistsError:
                raise translate(error((details and details[0]) or topic), "administer", f"on {topic!r}")
            logger.info("Created topic %s with %s.", topic, counted(counts[topic], "partition"))

    async def _options_of(self, topic: str) -> dict[str, str]:
        """Return the topic's limits; empty if the user may not describe them or the broker does not report them."""
        wanted = ["max.message.bytes", "min.insync.replicas"]
        response = await self._client.ask(DescribeConfigsRequest([(_TOPIC, topic, wanted)]))
        return {option[0]: option[1] for entry in response.resources for option in entry[4] if option[0] in wanted}

    async def close(self) -> None:
        """Cancel the look-ups."""
        for task in list(self._refreshing.values()):
            task.cancel()
        if self._refreshing:
            await asyncio.wait(self._refreshing.values())
