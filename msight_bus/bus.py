"""The bus: one program's connection to a broker, whichever it is."""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn

from msight_bus.backends.base import BLOCKED, Start
from msight_bus.capabilities import Capabilities
from msight_bus.core import Core
from msight_bus.errors import ConfigError
from msight_bus.events import BusEvent
from msight_bus.payload import Payload, check_headers, check_key, to_bytes
from msight_bus.publisher import Publisher
from msight_bus.queues import QueuePolicy
from msight_bus.registry import Registry
from msight_bus.settings import BusSettings
from msight_bus.subscription import AckMode, Subscription, Terms, check_seconds
from msight_bus.topics import check_group, check_topic


class Bus:
    """A connection to the chosen broker. Made by `connect`.

    Attributes:
        core: what nodes and the registry use; nothing in it is for users.
        settings: as given.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.settings = core.settings
        self._publishers = core.publishers
        self._registry: Registry | None = None

    @property
    def backend(self) -> str:
        """``"redis"``, ``"nats"``, ``"kafka"`` or ``"memory"``."""
        return self.settings.backend

    @property
    def capabilities(self) -> Capabilities:
        """What the connected backend truly does."""
        return self.core.backend.capabilities

    @property
    def clock(self) -> Callable[[], float]:
        """The clock by which this bus stamps messages, in POSIX seconds: the machine's, or a simulation's."""
        return self.core.clock

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
            AuthenticationError: the broker refused this message, or one that this method published on the topic before;
                then this one was not sent.
            ClosedError: the bus is closed.
            BusError: this is another thread, event loop or process than the one that the bus was opened in.
        """
        check_topic(topic)
        if headers is not None:
            headers = check_headers(headers, self.core.limits, binary=self.core.binary)
        if key is not None:
            key = check_key(key, binary=self.core.binary)
        payload = data if type(data) is bytes else to_bytes(data)
        core = self.core
        publisher = self._publishers.get(topic)
        if publisher is None or _get_running_loop() is not core.loop:
            core.check()
            publisher = core.publisher(topic)
        outcome = publisher.try_send(payload, key, headers)
        if outcome is BLOCKED:
            outcome = await publisher.send(payload, key, headers)
        if outcome is not None:
            await core.acknowledged(topic, outcome)

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
        in_flight = self.core.limits.max_in_flight if max_in_flight is None else max_in_flight
        if in_flight < 1:
            raise ValueError(f"max_in_flight is at least 1, not {in_flight}.")
        spreads = self.core.publisher_name is None if spread is None else spread
        return Publisher(self.core, topic, max_in_flight=in_flight, name=None if spreads else name or self.core.name)

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
            ValueError, TypeError: another argument is not what it can be.
            UnsupportedError: the backend cannot replay; or, with ``MSIGHT_STRICT``, cannot share.
            ClosedError: the bus is closed.
            BusError: this is another thread, event loop or process than the one that the bus was opened in.
        """
        check_topic(topic)
        if group_id is not None:
            check_group(group_id)
        check_seconds("deadline", deadline)
        check_seconds("lifespan", lifespan)
        if queue is not None and not isinstance(queue, QueuePolicy):
            raise TypeError(f"queue is a QueuePolicy, for example QueuePolicy.latest(5), not {type(queue).__name__}.")
        if ack not in ("auto", "manual"):
            raise ValueError(f"ack is 'auto' or 'manual', not {ack!r}.")
        start = "latest" if start is None else start
        _check_start(start)
        terms = Terms(ack, deadline, lifespan)
        return self.core.subscribe((topic,), group_id=group_id, queue=queue, start=start, terms=terms)

    def nodes(self) -> Registry:
        """The nodes that announce themselves on this broker.

        ``await bus.nodes()`` starts listening and gives the live registry, which is complete after one heartbeat interval.
        """
        if self._registry is None:
            self._registry = Registry(self.core)
            self.core.before_closing.append(self._registry.close)
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
            ValueError: ``timeout`` is not a number of seconds above 0.
        """
        check_seconds("timeout", timeout)
        await self.core.drain(self.core.limits.drain_timeout if timeout is None else timeout)

    async def close(self) -> None:
        """Close at once: what is queued is given up, what was handed over is flushed within a deadline.

        A cancellation meanwhile is raised when everything is closed.
        """
        await self.core.close()


class Connecting:
    """A bus for as long as an ``async with`` block runs: what `connect` returns."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __aenter__(self) -> Bus:
        bus = Bus(self._core)
        await self._core.open()
        return bus

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._core.close()

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        raise TypeError(_ASYNC_WITH)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or not hasattr(Bus, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"This is no bus yet, so it has no {name!r}. {_ASYNC_WITH}")


_ASYNC_WITH = "Connect with `async with msight_bus.connect() as bus:`."


def connect(
    settings: BusSettings | None = None,
    *,
    backend: str | None = None,
    on_event: Callable[[BusEvent], None] | None = None,
) -> Connecting:
    """Connect to the broker that the settings choose: ``async with msight_bus.connect() as bus:``.

    Args:
        settings: ``BusSettings()``, read from the environment, if not given.
        backend: overrides ``MSIGHT_PUBSUB_BACKEND``.
        on_event: called with each `BusEvent` (connection lost and back, gaps, refusals), on the loop; it must not block. What
            it raises is logged and changes nothing.

    Raises:
        ConfigError: settings are wrong; nothing was connected.
        TypeError: ``on_event`` is a coroutine function, or cannot be called.
        BusError: the installed redis-py or nats-py lacks a private attribute that the bus uses; nothing was connected.
        ConnectionLostError: on entering the block, the broker cannot be reached within ``connect_timeout``.
        AuthenticationError: on entering the block, the broker refused the credentials or the certificate.
    """
    if settings is not None and backend is not None:
        raise ConfigError("Give connect() either settings or backend, not both.")
    if settings is None:
        settings = BusSettings() if backend is None else BusSettings(backend=backend)
    return Connecting(Core(settings, on_event))


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
