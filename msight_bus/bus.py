"""The public interface: `connect` and `Bus`. The same methods on every backend."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from msight_bus.backends.base import BLOCKED, Start
from msight_bus.capabilities import Capabilities
from msight_bus.core import Core
from msight_bus.data.types import DATA, payload_type
from msight_bus.draining import CLOSE_WITHIN
from msight_bus.errors import ConfigError, DrainTimeoutError, TopicError
from msight_bus.events import BusEvent
from msight_bus.patterns import check_entries, is_pattern
from msight_bus.payload import Payload, check_headers, check_key, to_bytes
from msight_bus.program_announcer import ProgramAnnouncer
from msight_bus.publisher import Publisher
from msight_bus.queue_policy import QueuePolicy
from msight_bus.registry import Registry
from msight_bus.settings import BusSettings
from msight_bus.subscription import AckMode, Subscription, SubscriptionOptions, check_seconds
from msight_bus.topics import check_group, check_topic

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")


class Bus:
    """A connection to the configured broker. Made by `connect`.

    Attributes:
        core: the internal interface for nodes and the registry; not part of the public API.
        settings: the settings of this bus.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.settings = core.settings
        self._publishers = core.publishers
        self._registry: Registry | None = None

    @property
    def backend(self) -> str:
        """Name of the backend: ``"redis"``, ``"nats"``, ``"kafka"`` or ``"memory"``."""
        return self.settings.backend

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the connected backend."""
        return self.core.backend.capabilities

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that stamps messages, in POSIX seconds: the machine's clock, or the virtual clock of a simulation."""
        return self.core.clock

    # -- publishing

    async def publish(
        self, topic: str, data: Payload, *, key: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish one message.

        Returns when the backend's guarantee holds. Redis and NATS: the message was written to the connection, in the order of
        the calls. Kafka: all in-sync replicas acknowledged the message.

        Args:
            topic: dotted name, for example ``"intersection.cam_ne"``.
            data: the payload, bytes-like or a ``Data`` value.
            key: ordering key. Messages with the same key keep their order; on Kafka they share a partition.
            headers: user headers, text.

        Raises:
            TopicError, PayloadError, HeaderError, MessageTooLargeError: the argument cannot be published; nothing was sent.
            PublishTimeoutError: not confirmed within ``publish_timeout``; the outcome is unknown, and a retry may duplicate.
            AuthenticationError: the broker refused this message, or an earlier message that this method published on the
                topic; in the second case, this message was not sent.
            ClosedError: the bus is closed.
            BusError: called from another thread, event loop or process than the bus was opened in.
        """
        try:
            check_topic(topic)
        except TopicError as error:
            raise self._with_mapped_topic(error) from None
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

    # fmt: off
    @overload
    def publisher(self, topic: str, *, max_in_flight: int | None = None, name: str | None = None, spread: bool | None = None,
                  type: None = None) -> Publisher: ...
    @overload
    def publisher(self, topic: str, *, max_in_flight: int | None = None, name: str | None = None, spread: bool | None = None,
                  type: TypeForm[T]) -> Publisher[T]: ...
    # fmt: on
    def publisher(
        self,
        topic: str,
        *,
        max_in_flight: int | None = None,
        name: str | None = None,
        spread: bool | None = None,
        type: Any = None,  # noqa: A002 - the public name
    ) -> Publisher[Any]:
        """Return a publisher for a stream on ``topic``: ``async with bus.publisher(topic) as p: await p.send(data)``.

        Args:
            topic: dotted name.
            max_in_flight: maximum number of unacknowledged messages; default ``MSIGHT_MAX_IN_FLIGHT``.
            name: stable name that selects the Kafka partition of messages without a key; default: the device's name.
            spread: Kafka: distribute messages without a key over all partitions, so that a group shares them and order holds
                within a partition only; default ``MSIGHT_KAFKA_UNKEYED``.
            type: type of the values that `Publisher.send` accepts, as for `subscribe`; default: bytes-like or ``Data``.

        Raises:
            TopicError: the topic name is not valid.
            ValueError: ``max_in_flight`` is below 1.
            TypeError, ConfigError: values of ``type`` cannot be sent.
        """
        try:
            check_topic(topic)
        except TopicError as error:
            raise self._with_mapped_topic(error) from None
        self.core.on_broker(topic)
        in_flight = self.core.limits.max_in_flight if max_in_flight is None else max_in_flight
        if in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {in_flight}.")
        spreads = self.core.publisher_name is None if spread is None else spread
        partition_name = None if spreads else name or self.core.name
        kind = None if type is None else payload_type(type)
        return Publisher(self.core, topic, max_in_flight=in_flight, name=partition_name, kind=kind)

    # -- subscribing

    # fmt: off
    @overload
    def subscribe(self, topics: str | Sequence[str], *, group_id: str | None = None, queue: QueuePolicy | None = None,
                  start: Start | None = None, ack: AckMode = "auto", deadline: float | None = None, lifespan: float | None = None,
                  type: None = None) -> Subscription: ...
    @overload
    def subscribe(self, topics: str | Sequence[str], *, group_id: str | None = None, queue: QueuePolicy | None = None,
                  start: Start | None = None, ack: AckMode = "auto", deadline: float | None = None, lifespan: float | None = None,
                  type: TypeForm[T]) -> Subscription[T]: ...
    # fmt: on
    def subscribe(
        self,
        topics: str | Sequence[str],
        *,
        group_id: str | None = None,
        queue: QueuePolicy | None = None,
        start: Start | None = None,
        ack: AckMode = "auto",
        deadline: float | None = None,
        lifespan: float | None = None,
        type: Any = None,  # noqa: A002 - the public name
    ) -> Subscription[Any]:
        """Subscribe to topics: ``async with bus.subscribe("camera.*") as messages: async for message in messages: ...``.

        Entering returns once the broker has confirmed the subscription: messages published after that are received. In a NATS
        cluster this holds for publishers on the same server only; the other servers get the subscription a moment later,
        and messages published there before are not counted as missing.

        Args:
            topics: a topic, a pattern, or a list of topics and patterns. In a pattern ``*`` stands for one part of a name, ``>``
                for all remaining parts, at least one. Patterns match neither reserved topics nor dead-letter topics. A message
                is delivered once however many entries match; `Message.topic` names its topic.
            group_id: consumer group or queue group, whose members share the messages where the backend supports that.
            queue: policy for a consumer that is slower than the streams; default: ``block`` on Kafka, else ``drop_oldest``.
                ``latest(n)`` keeps n messages of each topic; the other policies bound the queue as a whole.
            start: ``"latest"`` (default), ``"earliest"``, a ``datetime``, ``{partition: offset}`` for one topic or
                ``{(topic, partition): offset}`` for a list of topics. All but ``"latest"`` need a backend with replay.
            ack: ``"auto"`` acknowledges a message when the next message is requested; ``"manual"`` requires
                ``await message.ack()``.
            deadline: seconds without a message of a topic after which one `DeadlineMissed` event is reported; the next message
                arms the deadline again. A topic that only a pattern matches has a deadline from its first message on. Time in
                which a full queue pauses the stream does not count.
            lifespan: seconds after which a message is dropped, counted as ``"too old"`` and acknowledged: since the message was
                received or, by the publisher's clock, since it was published. Requires synchronized clocks.
            type: type of ``message.data``: ``Data``, a subclass of ``Data`` or a union of these (default: ``Data``), a
                ``msgspec.Struct``, a dataclass, a pydantic model, ``bytes``, or ``Json[T]`` for other types.

        Raises:
            TopicError: a topic, a pattern or the group name is not valid, the list is empty or names an entry twice.
            ValueError, TypeError: another argument is not valid.
            UnsupportedError: the backend cannot replay; or, with ``MSIGHT_STRICT``, cannot share a topic among a group.
            ClosedError: the bus is closed.
            BusError: called from another thread, event loop or process than the bus was opened in.
        """
        try:
            entries = check_entries(topics)
        except TopicError as error:
            raise self._with_mapped_topic(error) from None
        if group_id is not None:
            check_group(group_id)
        if deadline is not None:
            check_seconds("deadline", deadline)
        if lifespan is not None:
            check_seconds("lifespan", lifespan)
        if queue is not None and not isinstance(queue, QueuePolicy):
            raise TypeError(
                f"queue must be a QueuePolicy, for example QueuePolicy.latest(5), not {queue.__class__.__name__}."
            )
        if ack not in ("auto", "manual"):
            raise ValueError(f"ack must be 'auto' or 'manual', not {ack!r}.")
        if start is None:
            start = "latest"
        else:
            check_start(start, entries)
        options = SubscriptionOptions(ack, deadline, lifespan, DATA if type is None else payload_type(type))
        return self.core.subscribe(entries, group_id=group_id, queue=queue, start=start, options=options)

    def _with_mapped_topic(self, error: TopicError) -> TopicError:
        """Return an error with the topic to use if ``MSIGHT_TOPIC_MAP`` maps the refused name to a topic; else ``error``."""
        try:
            if isinstance(error.topic, str):
                self.settings.topic_map.on_broker(error.topic)
        except TopicError as better:
            return better
        return error

    def nodes(self) -> Registry:
        """Return the registry of the nodes, and of the other programs, that announce themselves on this broker.

        ``await bus.nodes()`` subscribes to the announcements and returns the live registry, which is complete after one
        heartbeat interval. It iterates the nodes; `Registry.programs` are the others.
        """
        if self._registry is None:
            self._registry = Registry(self.core, topic_map=self.settings.topic_map)
            self.core.before_closing.append(self._registry.close)
        return self._registry

    # -- closing

    async def drain(self, timeout: float | None = None) -> None:
        """Drain and close: stop receiving, deliver queued messages, end the iterators, flush published messages, commit.

        Publishing is allowed until the iterators have ended. Called from a task that consumes one of the subscriptions, `drain`
        only stops receiving and returns, because the queue cannot empty before that task continues. Concurrent calls drain
        together: the earliest deadline holds, and each call raises its error.

        Args:
            timeout: seconds; default ``MSIGHT_DRAIN_TIMEOUT``.

        Raises:
            DrainTimeoutError: not drained in time, by this or another call; the bus is closed, and ``left`` names the messages
                that were left.
            ValueError: ``timeout`` is not a number of seconds above 0.
            BusError: called from another thread, event loop or process than the bus was opened in.
        """
        check_seconds("timeout", timeout)
        await self.core.drain(self.core.limits.drain_timeout if timeout is None else timeout)

    async def close(self) -> None:
        """Close without draining: discard queued messages, flush published messages within a deadline.

        A cancellation is raised once everything is closed.
        """
        await self.core.close()


class Connecting:
    """The async context manager that `connect` returns; entering it gives the `Bus`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __aenter__(self) -> Bus:
        bus = Bus(self._core)
        await self._core.open()
        if self._core.settings.announce:
            ProgramAnnouncer(self._core)
        return bus

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DrainTimeoutError) and self._core.is_open:  # the deadline of closing gracefully has passed
            self._core.backend.abort_at(asyncio.get_running_loop().time() + CLOSE_WITHIN)
        await self._core.close()

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        raise TypeError(_ASYNC_WITH)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or not hasattr(Bus, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"Not connected yet, so there is no {name!r}. {_ASYNC_WITH}")


_ASYNC_WITH = "Connect with `async with msight_bus.connect() as bus:`."


def connect(
    settings: BusSettings | None = None,
    *,
    backend: str | None = None,
    on_event: Callable[[BusEvent], None] | None = None,
) -> Connecting:
    """Connect to the configured broker: ``async with msight_bus.connect() as bus:``.

    Args:
        settings: default ``BusSettings()``, which reads the environment.
        backend: overrides ``MSIGHT_PUBSUB_BACKEND``; not together with ``settings``.
        on_event: called with each `BusEvent` (disconnects, reconnects, gaps, refusals, missed deadlines) on the event loop; must
            not block. An exception that it raises is logged and counted.

    Raises:
        ConfigError: a setting is wrong; nothing was connected.
        TypeError: ``settings`` is not a `BusSettings`, or ``on_event`` is a coroutine function or not callable.
        BusError: the installed client library lacks a private attribute that the bus uses; nothing was connected.
        ConnectionLostError: on entering: the broker cannot be reached within ``connect_timeout``.
        AuthenticationError: on entering: the broker refused the credentials, or a certificate was refused.
    """
    if settings is not None and backend is not None:
        raise ConfigError("connect() accepts either settings or backend, not both.")
    if settings is None:
        settings = BusSettings() if backend is None else BusSettings(backend=backend)
    if not isinstance(settings, BusSettings):
        raise TypeError(
            f"settings must be a BusSettings, not {type(settings).__name__}. Select the backend with connect(backend='redis') or "
            "MSIGHT_PUBSUB_BACKEND. `msight-bus settings` lists the variables for the broker's address."
        )
    return Connecting(Core(settings, on_event))


def check_start(start: object, entries: tuple[str, ...]) -> None:
    """Check the start of a subscription to ``entries``.

    Raises:
        ValueError: ``start`` is not valid; the text names what is accepted.
    """
    if start in ("latest", "earliest") or isinstance(start, datetime):
        return
    if not isinstance(start, Mapping) or not start or not all(map(_is_whole, start.values())):
        raise ValueError(
            "start must be 'latest', 'earliest', a datetime, {partition: offset} or {(topic, partition): offset}, "
            f"not {start!r:.200}."
        )
    if any(is_pattern(entry) for entry in entries):
        raise ValueError(
            "start cannot be a mapping with a pattern, whose topics are not known; use 'latest', 'earliest' or a datetime."
        )
    if len(entries) == 1 and all(map(_is_whole, start)):
        return
    pairs = [key for key in start if isinstance(key, tuple) and len(key) == 2 and _is_whole(key[1])]
    if len(pairs) < len(start):
        accepted = (
            "{(topic, partition): offset} for a list of topics"
            if len(entries) > 1
            else "{partition: offset} for one topic"
        )
        raise ValueError(f"start must be {accepted}, not {start!r:.200}.")
    unknown = [topic for topic, _ in pairs if topic not in entries]
    if unknown:
        raise ValueError(f"start names the topic {unknown[0]!r:.80}, which is not subscribed; add it to topics.")


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
