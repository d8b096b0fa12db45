"""Which topics exist, how many partitions they have and what they take; creating them on first use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from msight_bus.backends.kafka.aiokafka_compat import (
    Client,
    CreateTopicsRequest,
    DescribeConfigsRequest,
    MetadataRequest,
)
from msight_bus.backends.kafka.errors import REFUSED, error_for, translate
from msight_bus.errors import BusError, ConnectionLostError, TopicError
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
"""Kafka's default ``message.max.bytes`` (broker configuration reference)."""


_TOPIC = 2
"""The kind of a resource that has options, as the protocol numbers them."""


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """What the cluster says of one topic.

    Attributes:
        partitions: number of partitions, each with a leader; 0 if the topic does not exist or is being created.
        replicas: of its least replicated partition.
        brokers: in the cluster.
    """

    partitions: int
    replicas: int
    brokers: int


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that exists.

    Attributes:
        partitions: how many it has.
        max_message_bytes: its ``max.message.bytes``.
    """

    partitions: int
    max_message_bytes: int


_LOOK_ANEW_AFTER = 240.0
"""Seconds after which a topic is looked up anew at the next answer of the cluster that names it."""


class TopicDirectory:
    """Topics known to exist.

    Each is looked up before it is used, and anew when an answer of the cluster shows another number of partitions, or is
    so much younger that its limits may have changed.
    """

    def __init__(self, settings: BusSettings, client: Client, changed: Callable[[str], None]) -> None:
        """``changed`` is called with a topic that is known no longer, or has other partitions or limits than before."""
        self._settings = settings
        self._client = client
        self._changed = changed
        self._known: dict[str, TopicInfo] = {}
        self._looked_up: dict[str, float] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self.max_message_bytes = DEFAULT_MAX_MESSAGE_BYTES

    def known(self, topic: str) -> TopicInfo | None:
        """What is known without asking."""
        return self._known.get(topic)

    def forget(self, topic: str) -> None:
        """Look a topic up anew before it is used again."""
        if self._known.pop(topic, None) is not None:
            del self._looked_up[topic]
            self._changed(topic)

    def seen(self, topic: str, partitions: int) -> None:
        """Take what an answer of the cluster says of a topic: how many partitions it has, 0 if it does not exist."""
        info = self._known.get(topic)
        if info is not None and (
            partitions != info.partitions
            or asyncio.get_running_loop().time() - self._looked_up[topic] > _LOOK_ANEW_AFTER
        ):
            self.refresh_soon(topic)  # the broker that answered may be behind the others

    def refresh_soon(self, topic: str) -> None:
        """Look a known topic up anew, in a task of its own."""
        if topic in self._known and topic not in self._refreshing:
            self._looked_up[topic] = asyncio.get_running_loop().time()
            task = asyncio.create_task(self._refresh(topic), name=f"msight_bus topic {topic}")
            self._refreshing[topic] = task
            task.add_done_callback(lambda _: self._refreshing.pop(topic, None))

    async def _refresh(self, topic: str) -> None:
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout), self._lock:
                found = await self._metadata(topic)
                if not found.partitions:
                    logger.warning("Topic %s does not exist any more.", topic)
                    self.forget(topic)
                    return
                info = await self._describe(topic, found)
        except (KafkaError, OSError, BusError) as error:  # the next answer of the cluster brings it here again
            logger.debug("Topic %s could not be looked up anew: %s", topic, error)
            return
        former = self._known.get(topic)
        if former is None or former == info:
            return
        self._known[topic] = info
        if info.partitions != former.partitions:
            logger.warning(
                "Topic %s has %d partitions now, %d before: what has a key, and publishers without one, may move to another "
                "partition; order does not hold across the change.",
                topic,
                info.partitions,
                former.partitions,
            )
        if info.max_message_bytes != former.max_message_bytes:
            logger.warning(
                "Topic %s takes messages of %d bytes now, %d before (max.message.bytes).",
                topic,
                info.max_message_bytes,
                former.max_message_bytes,
            )
        self._changed(topic)

    async def ensure(self, topic: str) -> TopicInfo:
        """The topic, created if it has to be.

        Raises:
            TopicError: it does not exist and must not be created, or its name collides with another's.
            ConnectionLostError: Kafka did not answer within ``connect_timeout``.
            AuthenticationError: not permitted.
        """
        info = self._known.get(topic)
        if info is not None:
            return info
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout), self._lock:
                return await self._look_up(topic)
        except TimeoutError:
            raise ConnectionLostError(
                f"Kafka did not answer about topic {topic!r} within {self._settings.limits.connect_timeout:g} s "
                "(MSIGHT_CONNECT_TIMEOUT)."
            ) from None
        except KafkaError as error:
            raise translate(error, "administer") from error

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has now."""
        return (await self._metadata(topic)).partitions

    async def _metadata(self, topic: str) -> TopicMetadata:
        """What the cluster says of a topic. Asking does not create it, as it does by default.

        Raises:
            KafkaError: no answer, or the topic may not be described.
        """
        response = await self._client.ask(MetadataRequest([topic], allow_auto_topic_creation=False))
        brokers = len(response.brokers)
        for code, name, *_, partitions in response.topics:
            if name == topic and code == 0 and all(partition[2] >= 0 for partition in partitions):
                return TopicMetadata(len(partitions), min(len(partition[3]) for partition in partitions), brokers)
            if name == topic and error_for(code) in REFUSED:
                raise error_for(code)(name)
        return TopicMetadata(0, 0, brokers)

    async def _look_up(self, topic: str) -> TopicInfo:
        if topic in self._known:
            return self._known[topic]
        found = await self._metadata(topic)
        if not found.partitions:
            await self._create(topic)
            while not (found := await self._metadata(topic)).partitions:
                await asyncio.sleep(0.02)  # its leaders are being elected; the caller's deadline ends this
        looked_up = asyncio.get_running_loop().time()
        info = self._known[topic] = await self._describe(topic, found, warn=True)
        self._looked_up[topic] = looked_up
        return info

    async def _describe(self, topic: str, found: TopicMetadata, *, warn: bool = False) -> TopicInfo:
        options = await self._options_of(topic)
        if warn:
            self._warn_if_weak(topic, found, int(options.get("min.insync.replicas", 1)))
        return TopicInfo(found.partitions, int(options.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES)))

    def _warn_if_weak(self, topic: str, found: TopicMetadata, insync: int) -> None:
        """On a cluster, what is acknowledged should outlive one broker."""
        if found.brokers > 1 and (found.replicas < 3 or insync < 2) and not topic.startswith("_"):
            logger.warning(
                "Topic %s has %d replicas and min.insync.replicas=%d on a cluster of %d brokers: the loss of one broker can "
                "lose what was acknowledged. 3 replicas and min.insync.replicas=2 are safe (MSIGHT_KAFKA_REPLICATION).",
                topic,
                found.replicas,
                insync,
                found.brokers,
            )

    async def _create(self, topic: str) -> None:
        kafka = self._settings.kafka
        cluster = await self._client.ask(MetadataRequest(None, allow_auto_topic_creation=False))
        for _, other, *_ in cluster.topics:
            if other != topic and other.replace(".", "_") == topic.replace(".", "_"):
                raise TopicError(
                    f"Kafka cannot tell the topics {topic!r} and {other!r} apart in its metrics, where '.' becomes '_', and "
                    "accepts only one of them; choose another name.",
                    topic=topic,
                )
        if not kafka.create_topics:
            raise TopicError(
                f"The topic {topic!r} does not exist and MSIGHT_KAFKA_CREATE_TOPICS is false; create it, or set the "
                "variable to true.",
                topic=topic,
            )
        count = 1 if topic.startswith("_") else kafka.partitions
        replication = -1 if kafka.replication is None else kafka.replication
        timeout = int(self._settings.limits.connect_timeout * 1000)
        request = CreateTopicsRequest([(topic, count, replication, [], [])], timeout, False)
        # The controller first. A broker of a KRaft cluster forwards the request to it (KIP-590).
        response = await self._client.ask(request, first=cluster.controller_id)
        for entry in response.topic_errors:
            error = error_for(entry[1])
            if entry[1] and error is not TopicAlreadyExistsError:
                detail = entry[2] if len(entry) > 2 else ""
                raise translate(error(detail or topic), "administer", f"on {topic!r}")
        logger.info("Created topic %s with %d partitions.", topic, count)

    async def _options_of(self, topic: str) -> dict[str, str]:
        """The topic's limits; empty where we may not ask, or the broker does not say."""
        wanted = ["max.message.bytes", "min.insync.replicas"]
        response = await self._client.ask(DescribeConfigsRequest([(_TOPIC, topic, wanted)]))
        return {option[0]: option[1] for entry in response.resources for option in entry[4] if option[0] in wanted}

    async def close(self) -> None:
        """End the look-ups."""
        for task in list(self._refreshing.values()):
            task.cancel()
        if self._refreshing:
            await asyncio.wait(self._refreshing.values())
