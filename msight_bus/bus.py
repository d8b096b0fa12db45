"""The bus: one program's connection to a broker, whichever it is."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property, partial

from msight_bus.adapters import make_adapter
from msight_bus.adapters.base import WAIT, DeadLetterAdapter, Opener, Start, SubscribeRequest, Wait
from msight_bus.adapters.ending import finish
from msight_bus.capabilities import Capabilities
from msight_bus.draining import Guest, drain
from msight_bus.errors import (
    BusError,
    CapabilityWarning,
    ClosedError,
    ConnectionLostError,
    DrainTimeoutError,
    HeaderError,
    MessageTooLargeError,
    PublishTimeoutError,
    UnsupportedError,
)
from msight_bus.events import BusEvent
from msight_bus.message import Message
from msight_bus.payload import Payload, check_headers, check_key, to_bytes
from msight_bus.publisher import BusState, Publisher
from msight_bus.queues import QueuePolicy
from msight_bus.registry import Registry
from msight_bus.settings import BusSettings
from msight_bus.subscription import AckMode, Subscription
from msight_bus.timing import DeadlineSubscription, LifespanSubscription, check_seconds
from msight_bus.topics import check_group, check_topic

logger = logging.getLogger("msight_bus")


class _Stamp:
    """This bus's session and its per-topic sequences (adapters.base.Stamp)."""

    def __init__(self) -> None:
        self.session = secrets.randbits(64)
        self.last: dict[str, int] = {}

    def next(self, topic: str) -> int:
        """The topic's next sequence, from 1."""
        sequence = self.last.get(topic, 0) + 1
        self.last[topic] = sequence
        return sequence


class Bus:
    """A connection to the chosen broker. Made by `connect`."""

    def __init__(
        self,
        settings: BusSettings,
        on_event: Callable[[BusEvent], None],
        *,
        opener: Opener = make_adapter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._limits = settings.limits
        self._on_event = on_event
        self._clock = clock
        self._adapter = opener(settings, _Stamp(), self._report)
        self._subscriptions: set[Subscription] = set()
        self._name = settings.edge_device_name or socket.gethostname()
        self._spreads = settings.kafka.unkeyed == "spread"
        self._state = BusState(settings.limits)
        self._guests: set[Guest] = set()
        self._registry: Registry | None = None
        self._warned: set[str] = set()

    @property
    def backend(self) -> str:
        """``"redis"``, ``"nats"``, ``"kafka"`` or ``"memory"``."""
        return self.settings.backend

    @property
    def capabilities(self) -> Capabilities:
        """What the connected backend truly does."""
        return self._adapter.capabilities

    @cached_property
    def _binary(self) -> bool:
        """Whether keys and header values may be other bytes than UTF-8: what was read from a log can be published again."""
        return self._adapter.capabilities.persistence

    @property
    def clock(self) -> Callable[[], float]:
        """The clock by which this bus stamps messages, in POSIX seconds: the machine's, or a simulation's."""
        return self._clock

    def _report(self, event: BusEvent) -> None:
        self._on_event(event)

    # -- publishing

    async def publish(
        self, topic: str, data: Payload, *, key: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish one message; returns when the backend's own guarantee holds.

        Redis and NATS: handed to the connection, in order. Kafka: acknowledged by all in-sync replicas.

        Args:
            topic: dotted name, for example ``"intersection.cam_ne"``.
            data: the payload, bytes-like or a ``Data`` value.
            key: messages with the same key keep their order, and on Kafka share a partition.
            headers: text that travels beside the payload.

        Raises:
            TopicError, PayloadError, HeaderError, MessageTooLargeError: nothing was sent.
            PublishTimeoutError: not confirmed within ``publish_timeout``; the outcome is unknown.
            AuthenticationError: the broker refused this or the previous message on the topic.
            ClosedError: the bus is closed.
        """
        check_topic(topic)
        if headers is not None:
            headers = check_headers(headers, self._limits, binary=self._binary)
        if key is not None:
            key = check_key(key, binary=self._binary)
        await self._publish(topic, data if type(data) is bytes else to_bytes(data), key, headers)

    async def _publish(
        self, topic: str, payload: bytes, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        if not self._state.is_open:
            raise ClosedError("The bus is closed; publish inside `async with msight_bus.connect() as bus:`.")
        name = None if self._spreads else self._name
        done: asyncio.Future[None] | Wait | None = WAIT
        if not self._state.line.has(topic, key):
            done = self._adapter.publish(topic, payload, key, headers, name)
        if done is WAIT:
            async with self._state.line.turn(topic, key):
                while (done := self._adapter.publish(topic, payload, key, headers, name)) is WAIT:
                    await self._adapter.ready(topic, key, name)
        if done is not None:
            finished, _ = await asyncio.wait((done,), timeout=self._limits.publish_timeout)
            if not finished:
                raise PublishTimeoutError(
                    f"The message on {topic!r} was not acknowledged within {self._limits.publish_timeout:g} s "
                    "(MSIGHT_PUBLISH_TIMEOUT); it may still arrive, so a retry may duplicate it."
                )
            done.result()

    async def _dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a message that nobody could handle on a dead-letter topic as it came (adapters.base.DeadLetterAdapter).

        Raises:
            PublishTimeoutError, ConnectionLostError: the broker is away.
            ClosedError: the bus is closed.
        """
        if not self._state.is_open:
            raise ClosedError("The bus is closed.")
        if isinstance(self._adapter, DeadLetterAdapter):
            return await self._adapter.dead_letter(message, topic, why)
        omitted = {**why, "msight-dead-headers": "omitted"}
        for key, headers in ((message.key, {**message.headers, **why}), (message.key, omitted), (None, None)):
            try:
                await self.publish(topic, message.payload, key=key, headers=headers)
            except (HeaderError, MessageTooLargeError, UnsupportedError) as error:
                problem: BusError = error  # without headers it may go
            except (ClosedError, PublishTimeoutError, ConnectionLostError):
                raise
            except BusError as error:
                problem = error
                break
            else:
                return True
        logger.error("There is no dead letter on %s of a message of %s: %s", topic, message.topic, problem)
        return False

    def publisher(
        self,
        topic: str,
        *,
        max_in_flight: int | None = None,
        name: str | None = None,
        spread: bool | None = None,
    ) -> Publisher:
        """A publisher for a stream on ``topic``: ``async with bus.publisher(topic) as p: await p.send(data)``.

        Args:
            topic: where it publishes.
            max_in_flight: unacknowledged messages at most; ``MSIGHT_MAX_IN_FLIGHT`` if not given.
            name: stable name that chooses the Kafka partition of messages without a key; the device's name if not given.
            spread: on Kafka, whether messages without a key go to all partitions in turn, so that a group shares them and
                order holds within a partition only; ``MSIGHT_KAFKA_UNKEYED`` decides if not given.
        """
        check_topic(topic)
        in_flight = self._limits.max_in_flight if max_in_flight is None else max_in_flight
        if spread is None:
            spread = self._spreads
        if in_flight < 1:
            raise ValueError(f"max_in_flight is at least 1, not {in_flight}.")
        return Publisher(
            self._adapter,
            topic,
            limits=self._limits,
            max_in_flight=in_flight,
            name=None if spread else name or self._name,
            state=self._state,
        )

    # -- subscribing

    def subscribe(
        self,
        topic: str,
        *,
        group_id: str | None = None,
        queue: QueuePolicy | None = None,
        start: Start | None = None,
        ack: AckMode = "auto",
        deadline: float | None = None,
        lifespan: float | None = None,
    ) -> Subscription:
        """Subscribe to ``topic``: ``async with bus.subscribe(topic) as messages: async for message in messages: ...``.

        Entering returns once the broker has confirmed: what is published after that arrives. In a NATS cluster that is certain
        only for publishers on the same server; the others hear of the subscription a moment later, and what they published
        before is not counted as missing.

        Args:
            topic: dotted name.
            group_id: subscribers of one group share the messages, where the backend can.
            queue: what happens when the consumer is slower than the stream; by default ``block`` where a log waits,
                else ``drop_oldest``.
            start: ``"latest"``, ``"earliest"``, a ``datetime`` or ``{partition: offset}``; anything but the first needs replay.
            ack: ``"auto"`` marks a message as done when the next one is asked for; ``"manual"`` leaves it to ``message.ack()``.
            deadline: seconds without a message, from the start on, after which there is one `DeadlineMissed` event and count;
                the next message arms it again. Time in which a full queue holds the stream up does not count.
            lifespan: seconds after which a message is dropped instead of handed out, counted as ``"too old"``: since it was
                received, or since it was published by the publisher's clock, so keep the clocks of machines together. An old
                message counts as done.

        Raises:
            TopicError: the topic or group name cannot be used.
            ValueError: another argument is not what it can be.
            UnsupportedError: the backend cannot replay; or, with ``MSIGHT_STRICT``, cannot share.
        """
        check_topic(topic)
        if group_id is not None:
            check_group(group_id)
        check_seconds("deadline", deadline)
        check_seconds("lifespan", lifespan)
        return self._subscribe(topic, group_id, queue, start, ack, deadline=deadline, lifespan=lifespan)

    def _subscribe(
        self,
        topic: str,
        group_id: str | None,
        queue: QueuePolicy | None,
        start: Start | None,
        ack: AckMode,
        *,
        deadline: float | None = None,
        lifespan: float | None = None,
    ) -> Subscription:
        if not self._state.is_open:
            raise ClosedError("The bus is closed; subscribe inside `async with msight_bus.connect() as bus:`.")
        if ack not in ("auto", "manual"):
            raise ValueError(f"ack is 'auto' or 'manual', not {ack!r}.")
        capabilities = self.capabilities
        start = "latest" if start is None else start
        _check_start(start)
        if start != "latest" and not capabilities.replay:
            raise UnsupportedError(
                f"{self.backend} keeps no messages, so a subscription starts at 'latest', not {start!r}. "
                "To replay set MSIGHT_PUBSUB_BACKEND=kafka."
            )
        if group_id is not None and not capabilities.load_balancing:
            self._warn_of_group(group_id, topic)
        if queue is None:
            policy = QueuePolicy.block if capabilities.persistence else QueuePolicy.drop_oldest
            queue = policy(self._limits.queue_messages, max_bytes=self._limits.queue_bytes)
        kind: Callable[..., Subscription] = Subscription
        if lifespan is not None:
            kind = partial(LifespanSubscription, deadline=deadline, lifespan=lifespan, clock=self._clock)
        elif deadline is not None:
            kind = partial(DeadlineSubscription, deadline=deadline)
        subscription = kind(
            self._adapter,
            SubscribeRequest(topic, group_id, queue, start),
            ack=ack,
            limits=self._limits,
            report=self._report,
            on_closed=self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        return subscription

    def _warn_of_group(self, group_id: str, topic: str) -> None:
        text = (
            f"{self.backend} cannot share a topic among the group {group_id!r}: every subscriber of {topic!r} gets every "
            "message. To share the load set MSIGHT_PUBSUB_BACKEND to nats or kafka."
        )
        if self.settings.strict:
            raise UnsupportedError(text)
        if "group" not in self._warned:
            self._warned.add("group")
            warnings.warn(CapabilityWarning(text), stacklevel=4)

    def nodes(self) -> Registry:
        """The nodes that announce themselves on this broker.

        ``await bus.nodes()`` starts listening and gives the live registry, which is complete after one heartbeat interval.
        """
        if self._registry is None:
            self._registry = Registry(self)
        return self._registry

    # -- the end

    async def drain(self, timeout: float | None = None) -> None:
        """End in order: intake stops, iterators hand out what is queued and end, publishes are flushed, commits are made.

        Publishing is allowed until the iterators have ended. From inside a task that consumes one of the subscriptions
        this only stops the intake, because the queue cannot empty before that task goes on.

        Args:
            timeout: seconds; ``MSIGHT_DRAIN_TIMEOUT`` if not given.

        Raises:
            DrainTimeoutError: time was up; the bus is closed, and the error says what was left.
        """
        if not self._state.is_open:
            return
        timeout = self._limits.drain_timeout if timeout is None else timeout
        if self._registry is not None:
            await self._registry.close()
        try:
            over = await drain(list(self._subscriptions), list(self._guests), self._adapter, timeout)
        except DrainTimeoutError:
            await self.close()
            raise
        if over:
            await self.close()

    async def close(self) -> None:
        """Close at once: what is queued is given up, what was handed over is flushed within a deadline.

        A cancellation meanwhile is raised when everything is closed.
        """
        if not self._state.is_open:
            return
        self._state.is_open = False
        await finish(self._close())

    async def _close(self) -> None:
        try:
            if self._registry is not None:
                await self._registry.close()
            for subscription in list(self._subscriptions):
                await subscription.close()
        finally:
            await self._adapter.close()


def _check_start(start: object) -> None:
    if start in ("latest", "earliest") or isinstance(start, datetime):
        return
    if (
        isinstance(start, Mapping)
        and start
        and all(isinstance(n, int) and n >= 0 for pair in start.items() for n in pair)
    ):
        return
    raise ValueError(f"start is 'latest', 'earliest', a datetime or {{partition: offset}}, not {start!r}.")
