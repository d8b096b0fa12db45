"""`Core`, the internal interface of a bus for its publishers and subscriptions, for nodes and for the registry."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
import warnings
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from msight_bus.backends import make_backend
from msight_bus.backends.base import (
    BLOCKED,
    Backend,
    DeadLetterBackend,
    Opener,
    Position,
    PresenceBackend,
    Selection,
    Start,
    TopicPublisher,
)
from msight_bus.data.sensor import device_names
from msight_bus.draining import CLOSE_WITHIN, Drainable, drain
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
    fresh,
    late_publish,
    user_stacklevel,
)
from msight_bus.events import BusEvent, Refused
from msight_bus.message import Message
from msight_bus.patterns import TopicPattern, is_pattern, named
from msight_bus.payload import check_headers, check_key
from msight_bus.queue_policy import QueuePolicy
from msight_bus.reporting import Reporter
from msight_bus.settings import BusSettings
from msight_bus.subscription import Subscription, SubscriptionOptions
from msight_bus.tasks import reraise_swallowed, run_shielded
from msight_bus.topics import NODES_TOPIC

logger = logging.getLogger("msight_bus")

_PUBLISHERS = 10_000
"""Publishers that a bus keeps for `Bus.publish`, one for each topic."""

_CLOSED = object()


class Core:
    """The state and the internal methods of one bus. The methods do not check topics, keys, headers and payloads again.

    Attributes:
        settings: the settings of the bus.
        limits: ``settings.limits``.
        name: the device's name, which is the default of `Bus.publisher`'s ``name``.
        backend: the connection to the broker.
        clock: returns POSIX seconds.
        reporter: calls ``on_event``.
        binary: whether keys and header values may contain bytes that are not UTF-8, so that a record of a log can be published
            again unchanged.
        publisher_name: stable name of the publishers of `publish`; ``None`` spreads messages without a key.
        drainables: the nodes that run on the bus.
        subscriptions: the subscriptions that were entered and are not closed.
        publishers: the publishers of `publish`, by topic; bounded, the oldest is closed first.
        loop: the event loop of the bus; a sentinel while the bus is not open.
        before_closing: awaited in order before the bus is drained or closed.
        before_disconnecting: awaited in order after the subscriptions are closed and before the backend is closed.
        node_topics: names on the broker of the topics that nodes of this bus publish on.
    """

    def __init__(
        self,
        settings: BusSettings,
        on_event: Callable[[BusEvent], None] | None,
        *,
        opener: Opener = make_backend,
        clock: Callable[[], float] = time.time,
        new_session: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.name = settings.edge_device_name or socket.gethostname()
        self.publisher_name = None if settings.kafka.unkeyed == "spread" else self.name
        self.binary = False
        self.clock = clock
        self.reporter = Reporter(on_event)
        self.backend: Backend = opener(settings, self._report, new_session)
        self.drainables: set[Drainable] = set()
        self.before_closing: list[Callable[[], Awaitable[None]]] = []
        self.before_disconnecting: list[Callable[[], Awaitable[None]]] = []
        self.node_topics: set[str] = set()
        self.subscriptions: set[Subscription[Any]] = set()
        self.publishers: dict[str, TopicPublisher] = {}
        self.loop: object = _CLOSED
        self._closing: asyncio.Task[None] | None = None
        self._abort_deadlines: list[float] = []
        self._not_drained: BusError | None = None
        self._process = 0
        self._warned_of_groups = False

    # -- opening and closing

    async def open(self) -> None:
        """Connect.

        Raises:
            BusError: the broker cannot be reached, or refused the connection.
        """
        try:
            await reraise_swallowed(self.backend.open())
        except BaseException:
            await run_shielded(self.backend.close())
            self.reporter.flush()
            raise
        self.binary = self.backend.capabilities.persistence
        policy = QueuePolicy.block if self.binary else QueuePolicy.drop_oldest
        self._default_queue = policy(self.limits.queue_messages, max_bytes=self.limits.queue_bytes)
        self.loop = asyncio.get_running_loop()
        self._process = os.getpid()
        if self.settings.edge_device_name:
            device_names.append(self.settings.edge_device_name)

    @property
    def is_open(self) -> bool:
        """Whether the bus was opened and is not closed."""
        return self.loop is not _CLOSED

    def check(self) -> None:
        """Check that the caller runs in the thread, event loop and process of the bus.

        Raises:
            ClosedError: the bus is closed.
            BusError: the caller runs in another thread, event loop or process.
        """
        if _get_running_loop() is not self.loop:
            raise self._misuse()

    def _misuse(self) -> BusError:
        if self.loop is _CLOSED:
            return ClosedError("The bus is closed; use it inside `async with msight_bus.connect() as bus:`.")
        if os.getpid() != self._process:
            return BusError("This bus was opened before the process was forked; connect in the child process.")
        return BusError(
            "This bus was opened on another event loop and can be used on that loop only. From another thread: "
            "asyncio.run_coroutine_threadsafe(bus.publish(topic, data), loop).result(); from a worker thread of anyio: "
            "anyio.from_thread.run(bus.publish, topic, data); on another loop: connect there."
        )

    async def drain(self, timeout: float) -> None:
        """Drain within ``timeout`` seconds and close (`Bus.drain`). Of concurrent calls, the earliest deadline holds.

        Raises:
            DrainTimeoutError: not drained in time, by this or another call; the bus is closed.
            BusError: as `check`.
        """
        if self.is_open:
            self.check()
            deadline = asyncio.get_running_loop().time() + timeout + CLOSE_WITHIN
            self._abort_deadlines.append(deadline)
            self.backend.abort_at(min(self._abort_deadlines))
            everything = list(self.subscriptions), list(self.drainables)
            try:
                ended = await drain(self._run_before_closing, *everything, self.backend, timeout)
            except DrainTimeoutError as error:
                self._not_drained = self._not_drained or fresh(error)
                await self.close()
                raise
            if not ended:
                self._abort_deadlines.remove(deadline)
                self.backend.abort_at(min(self._abort_deadlines, default=None))
                return
        await self.close()
        if self._not_drained is not None:
            raise fresh(self._not_drained)

    async def close(self) -> None:
        """Close without draining. A cancellation is raised once everything is closed.

        Raises:
            BusError: called from another thread, event loop or process, where the bus cannot be closed.
        """
        if not self.is_open:
            await self._wait_until_closed()
            return
        self.check()
        self.loop = _CLOSED
        if self.settings.edge_device_name in device_names:
            device_names.remove(self.settings.edge_device_name)
        self._closing = asyncio.create_task(self._close(), name="msight_bus closing")
        await run_shielded(self._closing)

    async def _wait_until_closed(self) -> None:
        """Wait until another task of this event loop has closed everything."""
        closing = self._closing
        if closing is None or closing.done() or closing is asyncio.current_task():
            return
        if closing.get_loop() is asyncio.get_running_loop():
            await asyncio.wait((closing,))

    async def _close(self) -> None:
        try:
            await self._run_before_closing()
            subscriptions = list(self.subscriptions)
            closed = await asyncio.gather(*(one.close() for one in subscriptions), return_exceptions=True)
            for subscription, error in zip(subscriptions, closed, strict=True):
                if isinstance(error, BaseException):
                    logger.error("Closing the subscription to %s failed.", subscription.topic, exc_info=error)
        finally:
            try:
                for hook in self.before_disconnecting:
                    await hook()
            finally:
                for publisher in self.publishers.values():
                    publisher.close()
                await self.backend.close()
                self.reporter.flush()

    async def _run_before_closing(self) -> None:
        for hook in self.before_closing:
            await hook()

    def _report(self, event: BusEvent) -> None:
        """Report an event of the backend, which uses names on the broker."""
        if isinstance(event, Refused):
            if event.topic == NODES_TOPIC and not self.drainables:
                return  # refusal of the bus's own announcements, which are optional
            event = replace(event, topic=self.settings.topic_map.topic_of(event.topic))
        self.reporter.report(event)

    def on_broker(self, entry: str) -> str:
        """Return the name of a topic on the broker; a pattern stays as it is.

        Raises:
            TopicError: the broker does not accept the name, or ``MSIGHT_TOPIC_MAP`` maps the name to another topic.
        """
        name = entry if is_pattern(entry) else self.settings.topic_map.on_broker(entry)
        self.backend.check_topic(name)
        return name

    # -- publishing

    def publisher(self, topic: str) -> TopicPublisher:
        """Make the publisher of `publish` on ``topic``, which may be a reserved topic.

        Raises:
            TopicError: as `on_broker`.
            BusError: as `check`.
        """
        self.check()
        name = self.on_broker(topic)
        if len(self.publishers) >= min(_PUBLISHERS, self.limits.publisher_topics):
            self.publishers.pop(next(iter(self.publishers))).close()
        publisher = self.publishers[topic] = self.backend.publisher(name, self.publisher_name, keeps=False)
        return publisher

    async def publish(
        self, topic: str, payload: bytes, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish one message (`Bus.publish`); ``topic`` may be a reserved topic.

        Raises:
            BusError: as `Bus.publish`.
        """
        self.check()
        publisher = self.publishers.get(topic) or self.publisher(topic)
        outcome = publisher.try_send(payload, key, headers)
        if outcome is BLOCKED:
            outcome = await publisher.send(payload, key, headers)
        if outcome is not None:
            await self.acknowledged(topic, outcome)

    async def acknowledged(self, topic: str, outcome: asyncio.Future[None]) -> None:
        """Wait for the acknowledgement of a message.

        Raises:
            PublishTimeoutError: no acknowledgement within ``publish_timeout``.
            BusError: the broker refused the message.
        """
        within = self.limits.publish_timeout
        finished, _ = await asyncio.wait((outcome,), timeout=within)
        if not finished:
            raise late_publish(topic, within)
        error = outcome.exception()
        if error is not None:  # the messages of a batch share one error
            raise fresh(error) if isinstance(error, BusError) else error

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a failed message unchanged on a dead-letter topic (backends.base.DeadLetterBackend).

        Args:
            message: the message that could not be processed.
            topic: the dead-letter topic.
            why: headers that describe the failure.

        Returns:
            Whether the message was published; if not, the reason was logged, and a retry would fail too.

        Raises:
            PublishTimeoutError, ConnectionLostError: the broker is down.
            ClosedError: the bus is closed.
        """
        self.check()
        if isinstance(self.backend, DeadLetterBackend):
            return await self.backend.dead_letter(message, topic, why)
        omitted = {**why, "msight-dead-headers": "omitted"}
        for key, headers in ((message.key, {**message.headers, **why}), (message.key, omitted), (None, None)):
            try:
                checked = None if headers is None else check_headers(headers, self.limits)
                await self.publish(topic, message.payload, check_key(key), checked)
            except (HeaderError, MessageTooLargeError, UnsupportedError) as error:
                problem: BusError = error  # without headers, the message may be accepted
            except (ClosedError, PublishTimeoutError, ConnectionLostError):
                raise
            except BusError as error:
                problem = error
                break
            else:
                return True
        logger.error("Dead letter not published on %s; topic %s: %s", topic, message.topic, problem)
        return False

    async def has_subscribers(self, topic: str) -> bool | None:
        """Ask the broker whether ``topic`` has subscribers; ``None`` if unknown."""
        if not self.is_open or not isinstance(self.backend, PresenceBackend):
            return None
        return await self.backend.has_subscribers(topic)

    # -- subscribing

    def subscribe(
        self,
        topics: tuple[str, ...],
        *,
        group_id: str | None = None,
        queue: QueuePolicy | None = None,
        start: Start = "latest",
        options: SubscriptionOptions = SubscriptionOptions(),  # noqa: B008 - it is frozen
        report: Callable[[BusEvent], None] | None = None,
        on_drop: Callable[[Sequence[Message], str], None] | None = None,
        instance_id: str | None = None,
    ) -> Subscription[Any]:
        """Make a subscription to topics, which may be reserved topics, and patterns (`Bus.subscribe`).

        Args:
            topics: the topics and patterns.
            group_id, queue, start: as for `Bus.subscribe`.
            options: the options that the backend does not need.
            report: called with the events of the subscription instead of `reporter`, to which it must pass them.
            on_drop: called with the messages that are dropped and the cause.
            instance_id: see `Selection.instance_id`.

        Raises:
            TopicError: as `on_broker`.
            UnsupportedError: the backend cannot replay; or, with ``MSIGHT_STRICT``, cannot share a topic among a group.
            BusError: as `check`.
        """
        if self.loop is _CLOSED or _get_running_loop() not in (self.loop, None):  # None: called before the loop runs
            raise self._misuse()
        capabilities = self.backend.capabilities
        if start != "latest" and not capabilities.replay:
            raise UnsupportedError(
                f"{self.settings.backend} does not keep messages, so start must be 'latest', not {start!r}. "
                "To replay set MSIGHT_PUBSUB_BACKEND=kafka."
            )
        if group_id is not None and not capabilities.load_balancing:
            self._warn_of_group(group_id, topics)
        return Subscription(
            self.backend,
            replace(self._selection(topics, group_id, queue or self._default_queue, start), instance_id=instance_id),
            options,
            limits=self.limits,
            clock=self.clock,
            check=self.check,
            report=self.reporter.report if report is None else report,
            on_drop=on_drop,
            on_entered=self.subscriptions.add,
            on_closed=self.subscriptions.discard,
            entries=topics,
        )

    def _selection(self, entries: tuple[str, ...], group_id: str | None, queue: QueuePolicy, start: Start) -> Selection:
        patterns = [TopicPattern(entry, self.settings.dead_letter_suffix) for entry in entries if is_pattern(entry)]
        suffix = self.settings.dead_letter_suffix
        for pattern in patterns:
            if pattern.text.endswith(suffix):
                logger.warning(
                    "The pattern %s matches no topic: patterns do not match dead-letter topics, whose names end in %r "
                    "(MSIGHT_DEAD_LETTER_SUFFIX). Subscribe to their names.",
                    pattern.text,
                    suffix,
                )
        # The broker sends each message once for each entry that matches.
        needed = tuple(
            one for one in patterns if not any(other is not one and other.covers(one.text) for other in patterns)
        )
        names = {entry: self.on_broker(entry) for entry in entries}
        topics = tuple(name for entry, name in names.items() if not is_pattern(entry))
        position: Position = (
            {(names[key[0]], key[1]) if isinstance(key, tuple) else (topics[0], key): at for key, at in start.items()}
            if isinstance(start, Mapping)
            else start
        )
        return Selection(topics, group_id, queue, position, needed, self.settings.topic_map)

    def _warn_of_group(self, group_id: str, topics: tuple[str, ...]) -> None:
        text = (
            f"{self.settings.backend} cannot share a topic among the group {group_id!r}: every subscriber of "
            f"{named([repr(topic) for topic in topics])} gets every message. To share the load set MSIGHT_PUBSUB_BACKEND to nats "
            "or kafka."
        )
        if self.settings.strict:
            raise UnsupportedError(text)
        if not self._warned_of_groups:
            self._warned_of_groups = True
            warnings.warn(CapabilityWarning(text), stacklevel=user_stacklevel())
