"""`ReconnectingConnection`: opens a connection, watches its liveness, reconnects and resubscribes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Protocol

from msight_bus.backends.base import Inbox, TopicStream
from msight_bus.backends.pubsub import liveness
from msight_bus.backends.pubsub.connection import Connection, Connector, RefusedCallback
from msight_bus.backends.pubsub.handover import CopyFilter, DeliveryBuffer, DeliveryRecorder
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.routes import PatternRoute, Route
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ClosedError,
    ConnectionLostError,
    PublishTimeoutError,
    counted,
    fresh,
)
from msight_bus.settings import Limits
from msight_bus.tasks import BackgroundTasks, Gate, run_shielded

logger = logging.getLogger("msight_bus")

_LASTING = 2.0
"""A connection that is lost sooner than this many times ``reconnect_max`` counts as a failed attempt: the backoff continues."""

_CLOCK_ERROR = 0.001
"""Seconds by which the loop's clock and the wall clock may differ over the life of a connection."""

_EXAMINED_TOPICS = 64
"""Maximum number of topics examined for silent publishers."""

_CLOSED = "The bus is closed; use it inside `async with msight_bus.connect() as bus:`."


class Subscriber(Protocol):
    """A subscription, as `ReconnectingConnection` resubscribes it.

    Attributes:
        inbox: the inbox of a user's subscription; ``None`` for an internal subscription.
    """

    inbox: Inbox | None

    @property
    def routes(self) -> Sequence[Route]:
        """One route for each topic."""

    @property
    def paused(self) -> bool:
        """Whether its queue is full, so that reading is paused."""


def _unsubscribe(connection: Connection, subscriber: Subscriber) -> list[asyncio.Future[None]]:
    """Unsubscribe everything that a subscription has on a connection; return the answers, all of which are requested at once."""
    return [connection.unsubscribe(route).answer for route in subscriber.routes if connection.carries(route)]


def _raise_refusal(subscriber: Subscriber, answers: Sequence[asyncio.Future[None]]) -> None:
    for route, answer in zip(subscriber.routes, answers, strict=True):
        if (error := answer.exception()) is not None:
            raise _naming(subscriber, route, error) if isinstance(error, BusError) else error


def _naming(subscriber: Subscriber, route: Route, error: BusError) -> BusError:
    """Return a refusal that names its topic, if the subscription has several."""
    if len(subscriber.routes) == 1 or isinstance(error, ConnectionLostError):
        return error
    return type(error)(f"The subscription to {route.topic!r} was refused. {error}")


class ReconnectingConnection:
    """The owner of the current connection, which opens another one when the current one is lost.

    Attributes:
        connection: the current connection, ``None`` while reconnecting.
        gate: publishers wait here, in order, for the connection and for room in its write buffer.
        turn: the publisher that passed the gate last.
        reason: the error of the last lost connection or failed attempt.
    """

    def __init__(
        self,
        connector: Connector,
        limits: Limits,
        *,
        publishes: bool,
        on_lost: Callable[[ReconnectingConnection, BusError], None],
        on_reconnected: Callable[[ReconnectingConnection, int], None],
        on_refused: RefusedCallback,
    ) -> None:
        """
        Args:
            connector: opens connections.
            limits: deadlines, intervals and the backoff.
            publishes: whether messages are published on the connection.
            on_lost: called with this object and the reason when a connection is lost.
            on_reconnected: called with this object and the number of attempts once reconnected and resubscribed.
            on_refused: see `Connector.connect`.
        """
        self.connection: Connection | None = None
        self.gate = Gate()
        self.turn: object = None
        self.reason: BusError | None = None
        self._connector = connector
        self._limits = limits
        self._publishes = publishes
        self._on_lost = on_lost
        self._on_reconnected = on_reconnected
        self._on_refused = on_refused
        self._restoring: Connection | None = None
        self._moving_from: Connection | None = None
        self._subscribers: dict[Subscriber, None] = {}  # in the order of their calls of `join`
        self._streams: dict[str, list[TopicStream]] = {}
        self._patterns: dict[PatternRoute, None] = {}
        self._changed = asyncio.Event()
        self._failed: BusError | None = None
        self._closed = False
        self._opening = asyncio.Lock()
        self._tasks = BackgroundTasks()
        self._supervised = False
        self._opened_at = 0.0
        self._attempts = 0
        self._pause = limits.reconnect_min
        self._refused_since: float | None = None

    # -- the current connection

    async def open(self) -> None:
        """Connect: one attempt. Does nothing if `open` succeeded before.

        Raises:
            ConnectionLostError: the broker cannot be reached within ``connect_timeout``.
            AuthenticationError: the broker refused the credentials, or a certificate was refused.
            ClosedError: the bus is closed.
        """
        async with self._opening:
            if self._closed:
                raise ClosedError(_CLOSED)
            if not self._supervised:
                self._take(await self._connect())
                self._supervised = True
                self._tasks.start(self._supervise, f"connection to {self._connector.where}")

    async def connected(self) -> Connection:
        """Wait until connected; return the connection.

        Raises:
            BusError: the bus will not reconnect.
        """
        while (connection := self.connection) is None:
            self._raise_if_over()
            self._changed.clear()
            await self._changed.wait()
        return connection

    async def writable(self) -> Connection:
        """Wait until connected and not congested; return the connection.

        Raises:
            BusError: the bus will not reconnect.
        """
        while True:
            self._raise_if_over()
            connection = await self.connected()
            if not connection.congested:
                return connection
            await connection.drained()

    @property
    def is_over(self) -> bool:
        """Whether the connection is closed, or has failed for good."""
        return self._closed or self._failed is not None

    def _raise_if_over(self) -> None:
        if self._failed is not None:
            raise fresh(self._failed)
        if self._closed:
            raise ClosedError(_CLOSED)

    async def confirm(self) -> None:
        """Wait for a round trip, so that everything written before has an outcome.

        Raises:
            PublishTimeoutError: no answer within ``publish_timeout``.
        """
        connection, within = self.connection, self._limits.publish_timeout
        if connection is None or not connection.in_flight:
            return
        finished, _ = await asyncio.wait((connection.ping().answer,), timeout=within)
        if not finished:
            raise PublishTimeoutError(
                f"The broker did not confirm the published messages within {within:g} s (MSIGHT_PUBLISH_TIMEOUT); they may still "
                "arrive."
            )

    def streams(self, topic: str) -> Iterable[TopicStream]:
        """Return the streams that receive a topic; that of a pattern is included once a message on the topic has arrived."""
        matched = [route.routes[topic].stream for route in self._patterns if topic in route.routes]
        return [*self._streams.get(topic, ()), *matched] if matched else self._streams.get(topic, ())

    def silences(self) -> Iterable[tuple[str, float]]:
        """Return at most `_EXAMINED_TOPICS` topics, with the seconds since a publisher without announcements was last heard.

        Only publishers heard over the current connection count: announcements of others were missed while disconnected.
        """
        if self.connection is None:
            return []
        lasted = asyncio.get_running_loop().time() - self._opened_at + _CLOCK_ERROR
        named = ((topic, streams[0]) for topic, streams in self._streams.items())
        matched = ((topic, one.stream) for route in self._patterns for topic, one in route.routes.items())
        return [(topic, stream.silence(lasted)) for topic, stream in islice(chain(named, matched), _EXAMINED_TOPICS)]

    # -- subscriptions

    async def join(self, subscriber: Subscriber, name: str) -> None:
        """Subscribe, and resubscribe after each reconnect; ``name`` is for errors.

        Raises:
            ConnectionLostError: not confirmed within ``connect_timeout``.
            BusError: the broker refused, or the bus will not reconnect.
        """
        within = self._limits.connect_timeout
        try:
            async with asyncio.timeout(within):
                while not await self._join_once(subscriber):
                    pass
        except TimeoutError:
            reason = "" if self.reason is None or self.connection is not None else f": {self.reason}"
            raise ConnectionLostError(
                f"The subscription to {name!r} was not confirmed by {self._connector.where} within {within:g} s "
                f"(MSIGHT_CONNECT_TIMEOUT){reason}"
            ) from None

    async def _join_once(self, subscriber: Subscriber) -> bool:
        connection = await self.connected()
        try:
            asked = [connection.subscribe(route).answer for route in subscriber.routes]
            await asyncio.wait(asked)
            _raise_refusal(subscriber, asked)
        except ConnectionLostError:
            if connection is self.connection:
                raise
            return False
        except BaseException:
            _unsubscribe(connection, subscriber)
            raise
        if connection is not self.connection:  # the bus has moved to another server in the meantime
            for route in subscriber.routes:
                connection.forget_route(route)
            return False
        self._subscribers[subscriber] = None
        for route in subscriber.routes:
            if isinstance(route, PatternRoute):
                self._patterns[route] = None
            else:
                self._streams.setdefault(route.topic, []).append(route.stream)
        return True

    async def leave(self, subscriber: Subscriber) -> None:
        """Unsubscribe; messages in transit are still delivered.

        The connection is aborted if the broker does not answer within ``pong_timeout`` of having received the command. On a slow
        uplink the answer is awaited for ``connect_timeout`` at most, because the command waits behind payloads.
        """
        self._forget(subscriber)
        if self._restoring is not None:  # this connection has delivered nothing yet
            _unsubscribe(self._restoring, subscriber)
        connection = self.connection
        if connection is None:
            return
        answers = _unsubscribe(connection, subscriber)
        if not answers:
            return
        within = self._limits.pong_timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.connect_timeout):
                if not await liveness.answered(connection, answers[-1], within):
                    connection.fail(
                        ConnectionLostError(f"The broker did not confirm an unsubscribe within {within:g} s.")
                    )

    def _forget(self, subscriber: Subscriber) -> None:
        if subscriber not in self._subscribers:
            return
        del self._subscribers[subscriber]
        for route in subscriber.routes:
            if isinstance(route, PatternRoute):
                del self._patterns[route]
                continue
            streams = self._streams[route.topic]
            streams.remove(route.stream)
            if not streams:
                del self._streams[route.topic]

    def fail(self, subscriber: Subscriber, error: BusError) -> None:
        """End a subscription, with all of its topics, because the broker has refused one of them."""
        self._forget(subscriber)
        for connection in (self.connection, self._restoring):
            if connection is not None:
                _unsubscribe(connection, subscriber)
        if subscriber.inbox is not None:
            subscriber.inbox.fail(error)

    # -- reconnecting

    async def _connect(self) -> Connection:
        try:
            return await self._connector.connect(
                self._lost,
                publishes=self._publishes,
                on_refused=self._on_refused,
                on_leaving=self._leave_server,
            )
        except BusError:
            raise
        except Exception as error:  # a client library can raise anything if the peer sends invalid data
            raise ConnectionLostError(
                f"Connecting to {self._connector.where} failed: {type(error).__name__}: {error}."
            ) from error

    def _take(self, connection: Connection) -> None:
        self.connection = connection
        self._opened_at = asyncio.get_running_loop().time()
        self._changed.set()
        if connection.gone.done():
            self._lost(connection, ConnectionLostError("The connection was lost immediately after connecting."))
        if connection.leaving:  # announced while the connection was opening
            self._leave_server(connection)

    def _lost(self, connection: Connection, reason: BusError) -> None:
        """Handle the loss of a connection."""
        if connection is not self.connection:
            return
        self.connection = None
        self.reason = reason
        lasted = asyncio.get_running_loop().time() - self._opened_at
        if lasted >= _LASTING * self._limits.reconnect_max:
            self._attempts = 0
            self._pause = self._limits.reconnect_min
        if not self._closed:
            logger.debug("Disconnected: %s", reason)
            self._on_lost(self, reason)

    async def _supervise(self) -> None:
        """Watch the connection and reconnect, until the bus is closed or a refusal is final."""
        try:
            while not self.is_over:
                if self.connection is None:
                    await self._reconnect()
                else:
                    await liveness.watch(self.connection, self._limits)
        except asyncio.CancelledError:
            if not self._closed:
                self._end_unwatched()
            raise

    def _end_unwatched(self) -> None:
        """Fail the connection, because its liveness is no longer checked: its users would wait without a deadline."""
        error = ConnectionLostError(
            f"The task that watches the connection to {self._connector.where} was cancelled: the event loop ends before the bus "
            "is closed, or the program cancels all of asyncio.all_tasks() instead of its own tasks."
        )
        if self.connection is None:
            self._give_up(error)
        else:
            self.abort(error)

    def abort(self, error: BusError) -> None:
        """Fail everything that waits with ``error``, and do not reconnect."""
        self._refuse_all(error)
        if self.connection is not None:
            self.connection.fail(error)

    async def _reconnect(self) -> None:
        """Attempt to reconnect once, after a pause."""
        limit = self._limits.reconnect_limit
        if limit is not None and self._attempts >= limit:
            self._give_up(
                ConnectionLostError(
                    f"Gave up after {counted(limit, 'attempt')} (MSIGHT_RECONNECT_LIMIT): {self.reason}"
                )
            )
            return
        self._attempts += 1
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, self._limits.reconnect_max)
        await asyncio.sleep(pause)
        try:
            connection = await self._connect()
            # Only if the client library swallowed the cancellation, as asyncio.wait_for does before Python 3.12.
            if self._closed:
                await connection.close(0.1)
                return
            try:
                self._restoring = connection
                await self._restore(connection)
            except BaseException:
                await run_shielded(connection.close(0.1))
                raise
            finally:
                self._restoring = None
        except AuthenticationError as error:
            self._consider_refusal(error)
            return
        except (TimeoutError, BusError) as error:
            self._failed_once(error)
            return
        self._refused_since = None
        self._take(connection)
        for subscriber in self._subscribers:
            if subscriber.inbox is not None:
                subscriber.inbox.gap(None, "reconnect")
        if self.connection is connection:
            self._on_reconnected(self, self._attempts)

    async def _restore(self, connection: Connection) -> None:
        """Resubscribe on ``connection``, including subscriptions that are added in the meantime.

        Raises:
            TimeoutError: nothing arrived for ``connect_timeout``.
            ConnectionLostError: the new connection was lost.
            BusError: the broker is busy or not ready; the next attempt may succeed.
        """
        while asked := [
            (subscriber, route, connection.subscribe(route))
            for subscriber in self._subscribers
            for route in subscriber.routes
            if not connection.carries(route)
        ]:
            await self._restored(connection, asked)
        if any(subscriber.paused for subscriber in self._subscribers):
            connection.pause_reading()

    async def _restored(self, connection: Connection, asked: Sequence[tuple[Subscriber, Route, Request]]) -> None:
        """Await the answers to all subscriptions, about one round trip. A subscription that the broker refuses ends."""
        waiting = {request.answer for *_, request in asked}
        while waiting and not connection.gone.done():
            before = connection.received_at
            answered, waiting = await asyncio.wait(
                waiting | {connection.gone}, timeout=self._limits.connect_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            waiting -= {connection.gone}
            if not answered and connection.received_at == before:  # an answer may come within one tick of the clock
                raise TimeoutError(f"no answer for {self._limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT)")
        for subscriber, route, request in asked:
            error = request.answer.exception() if request.answer.done() else None
            if isinstance(error, AuthenticationError) or request.error is not None:
                connection.forget_route(route)
                if subscriber in self._subscribers and isinstance(error, BusError):
                    self.fail(subscriber, _naming(subscriber, route, error))
            elif error is not None:
                raise error  # temporary: the next attempt may succeed
        if connection.gone.done():
            raise ConnectionLostError("The connection was lost while resubscribing.")

    def _leave_server(self, old: Connection) -> None:
        if self.connection is old and self._moving_from is not old:
            self._moving_from = old
            self._tasks.start(lambda: self._move(old), "move")

    async def _move(self, old: Connection) -> None:
        """Retry the hand-over to another server until that succeeds or the old connection is lost."""
        loop = asyncio.get_running_loop()
        # a pause, because every server of the cluster may have announced its shutdown
        await asyncio.sleep(max(0.0, self._opened_at + self._limits.reconnect_max - loop.time()))
        if self.connection is not old:
            return
        logger.info("Server shutdown announced by %s; connecting to another server.", self._connector.where)
        pause = self._limits.reconnect_min
        problem = await self._move_once(old)
        if problem is not None:
            logger.warning("Hand-over to another server failed, retrying: %s", problem)
        while problem is not None and not self._closed:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, self._limits.reconnect_max)
            if self.connection is not old:
                return
            problem = await self._move_once(old)

    async def _move_once(self, old: Connection) -> BaseException | None:
        """Hand over once: subscribe at another server, then close the old connection; return the error of a failure."""
        recorder = old.interceptor = DeliveryRecorder()
        try:
            new = await self._connect()
            buffer = new.interceptor = DeliveryBuffer(new.pause_reading)
            try:
                self._restoring = new
                await self._restore(new)
                self._check_hand_over(old, new)
            except BaseException:
                await run_shielded(new.close(0.1))
                raise
            finally:
                self._restoring = None
        except (TimeoutError, BusError) as error:
            old.interceptor = None
            return error
        self._take(new)
        try:
            asked = [old.unsubscribe(route) for subscriber in self._subscribers for route in subscriber.routes]
            asked.append(old.ping())
            await asyncio.wait([request.answer for request in asked], timeout=self._limits.pong_timeout)
        finally:
            buffer.deliver_except(recorder.seen)
            new.interceptor = CopyFilter(recorder.seen, new)
            if not any(subscriber.paused for subscriber in self._subscribers):
                new.resume_reading()
            await run_shielded(old.close(within=1.0))
        return None

    def _check_hand_over(self, old: Connection, new: Connection) -> None:
        if self.connection is not old or self._closed:
            raise ConnectionLostError("The old connection was lost during the hand-over.")
        if new.leaving:
            raise ConnectionLostError("The other server has announced its shutdown, too.")

    def _consider_refusal(self, error: AuthenticationError) -> None:
        """Give up at once or, where credentials and certificates can change, after ``refusal_patience``."""
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since >= self._connector.refusal_patience:
            self._give_up(error)
        else:
            self._failed_once(error)

    def _failed_once(self, error: BaseException) -> None:
        if isinstance(error, BusError):
            self.reason = error
        logger.debug("Reconnect attempt %d failed: %s", self._attempts, self.reason)

    def _give_up(self, error: BusError) -> None:
        self._refuse_all(error)
        logger.error("Not reconnecting: %s", error)

    def _refuse_all(self, error: BusError) -> None:
        """Fail every subscription and every later call with ``error``."""
        self._failed = error
        self._changed.set()
        for subscriber in list(self._subscribers):
            self.fail(subscriber, error)

    async def close(self, within: float) -> None:
        """Flush within ``within`` seconds, and close."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        await self._tasks.stop()
        connection = self.connection
        if connection is not None:
            if connection.in_flight:
                await asyncio.wait((connection.ping().answer,), timeout=within)
            self.connection = None
            await connection.close(within=1.0)
