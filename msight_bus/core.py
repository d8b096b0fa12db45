"""The inside of a bus: what its publishers and subscriptions, the nodes that run on it and the registry share."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
import warnings
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable, Mapping

from msight_bus.backends import make_backend
from msight_bus.backends.base import BLOCKED, Backend, DeadLetterBackend, Opener, Selection, Start, TopicPublisher
from msight_bus.draining import Drainable, drain
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
)
from msight_bus.events import BusEvent
from msight_bus.message import Message
from msight_bus.payload import check_headers, check_key
from msight_bus.queues import QueuePolicy
from msight_bus.reporting import Reporter
from msight_bus.settings import BusSettings
from msight_bus.subscription import Subscription, Terms
from msight_bus.tasks import reraise_swallowed, run_shielded

logger = logging.getLogger("msight_bus")

_PUBLISHERS = 10_000
"""Publishers that `Core.publish` keeps, one a topic."""

_CLOSED = object()


def _session() -> int:
    return secrets.randbits(64)


class Core:
    """One bus from the inside.

    Attributes:
        settings: as given.
        name: of this device; the stable name of publishers that have no other.
        backend: what speaks to the broker.
        clock: POSIX seconds.
        reporter: tells the user of events.
        binary: whether keys and header values may be other bytes than UTF-8: what was read from a log can be published again.
        publisher_name: of what `publish` sends; ``None`` spreads messages without a key.
        drainables: nodes that run on the bus, which end in their own order.
        publishers: the bus's own, one a topic, as many as are kept.
        loop: the event loop of the bus; something else once it is closed.
        before_closing: awaited first when the bus is drained or closed.
    """

    def __init__(
        self,
        settings: BusSettings,
        on_event: Callable[[BusEvent], None] | None,
        *,
        opener: Opener = make_backend,
        clock: Callable[[], float] = time.time,
        new_session: Callable[[], int] = _session,
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.name = settings.edge_device_name or socket.gethostname()
        self.publisher_name = None if settings.kafka.unkeyed == "spread" else self.name
        self.binary = False
        self.clock = clock
        self.reporter = Reporter(on_event)
        self.backend: Backend = opener(settings, self.reporter.report, new_session)
        self.drainables: set[Drainable] = set()
        self.before_closing: list[Callable[[], Awaitable[None]]] = []
        self._subscriptions: set[Subscription] = set()
        self.publishers: dict[str, TopicPublisher] = {}
        self.loop: object = _CLOSED
        self._closing: asyncio.Task[None] | None = None
        self._process = 0
        self._warned_of_groups = False

    # -- the life of a bus

    async def open(self) -> None:
        """Connect.

        Raises:
            BusError: the broker cannot be reached, or refused.
        """
        try:
            await reraise_swallowed(self.backend.open())
        except BaseException:
            await run_shielded(self.backend.close())
            self.reporter.flush()
            raise
        self.binary = self.backend.capabilities.persistence
        self.loop = asyncio.get_running_loop()
        self._process = os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether the bus can be used."""
        return self.loop is not _CLOSED

    def check(self) -> None:
        """See that the bus is used where it was opened.

        Raises:
            ClosedError: it is closed.
            BusError: this is another thread, event loop or process.
        """
        if _get_running_loop() is not self.loop:
            raise self._misuse()

    def _check_unless_outside(self) -> None:
        """The same for what may be done between two runs of the loop too."""
        if not self.is_open or _get_running_loop() is not None:
            self.check()

    def _misuse(self) -> BusError:
        if self.loop is _CLOSED:
            return ClosedError("The bus is closed; use it inside `async with msight_bus.connect() as bus:`.")
        if os.getpid() != self._process:
            return BusError("This bus was opened before the process was forked; connect in the child process.")
        return BusError(
            "This bus belongs to another event loop; it works on the one that it was opened on. From another thread: "
            "asyncio.run_coroutine_threadsafe(bus.publish(topic, data), loop).result(); from a worker thread of anyio: "
            "anyio.from_thread.run(bus.publish, topic, data); on another loop: connect there."
        )

    async def drain(self, timeout: float) -> None:
        """End in order, within ``timeout`` seconds (`Bus.drain`).

        Raises:
            DrainTimeoutError: time was up; the bus is closed.
        """
        if not self.is_open:
            await self._closed_by_another()
            return
        self.check()
        await self._run_before_closing()
        try:
            ended = await drain(list(self._subscriptions), list(self.drainables), self.backend, timeout)
        except DrainTimeoutError:
            await self.close()
            raise
        if ended:
            await self.close()

    async def close(self) -> None:
        """Close at once; a cancellation meanwhile is raised when everything is closed.

        Raises:
            BusError: this is another event loop, on which nothing of the bus can be ended.
        """
        if not self.is_open:
            await self._closed_by_another()
            return
        self.check()
        self.loop = _CLOSED
        self._closing = asyncio.create_task(self._close(), name="msight_bus closing")
        await run_shielded(self._closing)

    async def _closed_by_another(self) -> None:
        """Wait until everything is closed, where another task of this loop is at it."""
        closing = self._closing
        if closing is None or closing.done() or closing is asyncio.current_task():
            return
        if closing.get_loop() is asyncio.get_running_loop():
            await asyncio.wait((closing,))

    async def _close(self) -> None:
        try:
            await self._run_before_closing()
            closed = await asyncio.gather(
                *(subscription.close() for subscription in list(self._subscriptions)), return_exceptions=True
            )
            for error in closed:
                if isinstance(error, BaseException):
                    logger.error("A subscription could not be closed in order.", exc_info=error)
        finally:
            for publisher in self.publishers.values():
                publisher.close()
            await self.backend.close()
            self.reporter.flush()

    async def _run_before_closing(self) -> None:
        for hook in self.before_closing:
            await hook()

    # -- publishing

    def publisher(self, topic: str) -> TopicPublisher:
        """The bus's own publisher on a topic, which is checked; reserved ones are allowed.

        Raises:
            BusError: the bus cannot be used here (`check`).
        """
        self.check()
        if len(self.publishers) >= min(_PUBLISHERS, self.limits.publisher_topics):
            self.publishers.pop(next(iter(self.publishers))).close()
        publisher = self.publishers[topic] = self.backend.publisher(topic, self.publisher_name, keeps=False)
        return publisher

    async def publish(
        self, topic: str, payload: bytes, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish one message whose parts are checked (`Bus.publish`); reserved topics are allowed."""
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
            PublishTimeoutError: it did not come within ``publish_timeout``.
            BusError: the broker refused the message.
        """
        within = self.limits.publish_timeout
        finished, _ = await asyncio.wait((outcome,), timeout=within)
        if not finished:
            raise late_publish(topic, within)
        error = outcome.exception()
        if error is not None:  # messages of one batch share it
            raise fresh(error) if isinstance(error, BusError) else error

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a message that nobody could handle on a dead-letter topic, as it came (backends.base.DeadLetterBackend).

        Raises:
            PublishTimeoutError, ConnectionLostError: the broker is away.
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

    # -- subscribing

    def subscribe(
        self,
        topics: tuple[str, ...],
        *,
        group_id: str | None = None,
        queue: QueuePolicy | None = None,
        start: Start = "latest",
        terms: Terms = Terms(),  # noqa: B008 - it is frozen
    ) -> Subscription:
        """A subscription to topics that are checked; reserved ones are allowed.

        Raises:
            UnsupportedError: the backend cannot replay; or, with ``MSIGHT_STRICT``, cannot share.
        """
        self._check_unless_outside()
        capabilities = self.backend.capabilities
        if start != "latest" and not capabilities.replay:
            raise UnsupportedError(
                f"{self.settings.backend} keeps no messages, so a subscription starts at 'latest', not {start!r}. "
                "To replay set MSIGHT_PUBSUB_BACKEND=kafka."
            )
        if group_id is not None and not capabilities.load_balancing:
            self._warn_of_group(group_id, topics)
        if queue is None:
            policy = QueuePolicy.block if capabilities.persistence else QueuePolicy.drop_oldest
            queue = policy(self.limits.queue_messages, max_bytes=self.limits.queue_bytes)
        return Subscription(
            self.backend,
            Selection(topics, group_id, queue, start),
            terms,
            limits=self.limits,
            clock=self.clock,
            check=self.check,
            report=self.reporter.report,
            on_entered=self._subscriptions.add,
            on_closed=self._subscriptions.discard,
        )

    def _warn_of_group(self, group_id: str, topics: tuple[str, ...]) -> None:
        text = (
            f"{self.settings.backend} cannot share a topic among the group {group_id!r}: every subscriber of "
            f"{', '.join(map(repr, topics))} gets every message. To share the load set MSIGHT_PUBSUB_BACKEND to nats or kafka."
        )
        if self.settings.strict:
            raise UnsupportedError(text)
        if not self._warned_of_groups:
            self._warned_of_groups = True
            warnings.warn(CapabilityWarning(text), stacklevel=4)
