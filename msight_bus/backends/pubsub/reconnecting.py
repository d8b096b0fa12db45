"""The one owner of a connection's state: it opens the connection, watches it, opens it again and subscribes anew."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msight_bus.backends.base import Inbox, TopicStream
from msight_bus.backends.pubsub import liveness
from msight_bus.backends.pubsub.connection import Connection, Route
from msight_bus.backends.pubsub.handover import CopyFilter, DeliveryBuffer, DeliveryRecorder
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ClosedError, ConnectionLostError, fresh
from msight_bus.settings import Limits
from msight_bus.tasks import BackgroundTasks, Gate, run_shielded

logger = logging.getLogger("msight_bus")

_LASTING = 2.0
"""A connection that is lost sooner than this many times the longest pause counts as another failed try."""


_LOOKED_AT = 64
"""Topics that are looked at for silence."""


class Connector(Protocol):
    """Opens connections to one broker."""

    shares_connection: bool
    """Whether publishing and subscribing use the same connection."""

    @property
    def where(self) -> str:
        """The broker and its addresses, for people."""

    @property
    def announces(self) -> bool:
        """Whether messages carry sequences, so that the last ones can be announced."""

    @property
    def refusal_patience(self) -> float:
        """Seconds for which a refusal on reconnecting may still change, as when secrets come from files."""

    @property
    def capabilities(self) -> Capabilities:
        """What the broker does; complete once a connection was opened."""

    async def connect(
        self, on_lost: LostCallback, *, publishes: bool, on_refused: RefusedCallback, on_leaving: LeavingCallback
    ) -> Connection:
        """Open a connection within ``connect_timeout``.

        Args:
            on_lost: for the connection.
            on_leaving: called when the server says that it will leave.
            publishes: whether messages will be published on it.
            on_refused: called with a topic and an error where the broker refuses a message and names its topic only.

        Raises:
            ConnectionLostError: not reachable.
            AuthenticationError: refused.
        """


LostCallback = Callable[[Connection, BusError], None]
RefusedCallback = Callable[[str, BusError], None]
LeavingCallback = Callable[[Connection], None]


class Subscribed(Protocol):
    """A subscription on a connection.

    Attributes:
        inbox: where it delivers, if that is a user's.
    """

    inbox: Inbox | None

    @property
    def routes(self) -> Sequence[Route]:
        """Its topics."""

    @property
    def paused(self) -> bool:
        """Whether its full queue holds up the connection."""


class ReconnectingConnection:
    """A connection that comes back.

    Attributes:
        connection: the open connection, ``None`` while reconnecting.
        gate: where publishers wait for room, in order.
        reason: why the last connection was lost.
    """

    def __init__(
        self,
        connector: Connector,
        limits: Limits,
        *,
        publishes: bool,
        on_lost: Callable[[ReconnectingConnection, BusError], None],
        on_back: Callable[[ReconnectingConnection, int], None],
        on_refused: RefusedCallback,
    ) -> None:
        """``on_back`` gets the number of tries."""
        self.connection: Connection | None = None
        self.gate = Gate()
        self.reason: BusError | None = None
        self._connector = connector
        self._limits = limits
        self._publishes = publishes
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_refused = on_refused
        self._restoring: Connection | None = None
        self._moving_from: Connection | None = None
        self._subscribed: dict[Subscribed, None] = {}  # in the order in which they came
        self._streams: dict[str, list[TopicStream]] = {}
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

    # -- what others ask

    async def open(self) -> None:
        """Connect once, unless it is done already.

        Raises:
            ConnectionLostError: not reachable within ``connect_timeout``.
            AuthenticationError: refused.
        """
        async with self._opening:
            if self._closed:
                raise ClosedError("The bus is closed.")
            if not self._supervised:
                self._take(await self._connect())
                self._supervised = True
                self._tasks.start(self._supervise, f"connection to {self._connector.where}")

    async def connected(self) -> Connection:
        """The connection, once it is open.

        Raises:
            BusError: it will not be opened again.
        """
        while (connection := self.connection) is None:
            self._raise_if_over()
            self._changed.clear()
            await self._changed.wait()
        return connection

    async def writable(self) -> Connection:
        """The connection, once it is open and has room to write."""
        while True:
            self._raise_if_over()
            connection = await self.connected()
            if not connection.congested:
                return connection
            await connection.drained()

    @property
    def is_over(self) -> bool:
        """Whether it will not be opened again."""
        return self._closed or self._failed is not None

    def _raise_if_over(self) -> None:
        if self._failed is not None:
            raise fresh(self._failed)
        if self._closed:
            raise ClosedError("The bus is closed.")

    async def confirm(self, within: float) -> bool:
        """Round trip: what was written before has an outcome. Returns whether it was answered within ``within`` seconds."""
        connection = self.connection
        if connection is None or not connection.in_flight:
            return True
        request = connection.ping()
        await asyncio.wait((request.answer,), timeout=within)
        return request.answer.done()

    def streams(self, topic: str) -> Iterable[TopicStream]:
        """The subscribed streams of a topic."""
        return self._streams.get(topic, ())

    def silences(self) -> Iterable[tuple[str, float]]:
        """Topics, and for how long a publisher there has been silent without an announcement; of some topics only."""
        some = [streams for _, streams in zip(range(_LOOKED_AT), self._streams.values(), strict=False)]
        return [(topic, streams[0].silence()) for topic, streams in zip(list(self._streams), some, strict=False)]

    # -- subscriptions

    async def join(self, subscribed: Subscribed, name: str) -> None:
        """Subscribe, and subscribe anew whenever the connection comes back; ``name`` is for people.

        Raises:
            ConnectionLostError: not confirmed within ``connect_timeout``.
            BusError: the broker refused.
        """
        within = self._limits.connect_timeout
        try:
            async with asyncio.timeout(within):
                while not await self._join_once(subscribed):
                    pass
        except TimeoutError:
            reason = "" if self.reason is None or self.connection is not None else f": {self.reason}"
            raise ConnectionLostError(
                f"The subscription to {name!r} was not confirmed by {self._connector.where} within {within:g} s "
                f"(MSIGHT_CONNECT_TIMEOUT){reason}"
            ) from None

    async def _join_once(self, subscribed: Subscribed) -> bool:
        connection = await self.connected()
        try:
            await _answers([connection.subscribe(route) for route in subscribed.routes])
        except ConnectionLostError:
            if connection is self.connection:
                raise
            return False
        except BaseException:
            for route in subscribed.routes:
                if connection.carries(route):
                    connection.unsubscribe(route)
            raise
        if connection is not self.connection:  # the bus has moved to another server meanwhile
            for route in subscribed.routes:
                connection.forget_route(route)
            return False
        self._subscribed[subscribed] = None
        for route in subscribed.routes:
            self._streams.setdefault(route.topic, []).append(route.stream)
        return True

    async def leave(self, subscribed: Subscribed) -> None:
        """Unsubscribe; what was on its way is still delivered. A broker that does not answer is left."""
        self._forget(subscribed)
        if self._restoring is not None:  # has delivered nothing yet
            for route in subscribed.routes:
                if self._restoring.carries(route):
                    self._restoring.unsubscribe(route)
        connection = self.connection
        if connection is None:
            return
        answers = [connection.unsubscribe(route).answer for route in subscribed.routes if connection.carries(route)]
        if answers:
            await asyncio.wait(answers, timeout=self._limits.pong_timeout)
            if not all(answer.done() for answer in answers):
                connection.fail(
                    ConnectionLostError(f"The broker did not confirm within {self._limits.pong_timeout:g} s.")
                )

    def _forget(self, subscribed: Subscribed) -> None:
        if subscribed not in self._subscribed:
            return
        del self._subscribed[subscribed]
        for route in subscribed.routes:
            streams = self._streams[route.topic]
            streams.remove(route.stream)
            if not streams:
                del self._streams[route.topic]

    def fail(self, subscribed: Subscribed, error: BusError) -> None:
        """The broker refuses the subscription from now on."""
        self._forget(subscribed)
        if subscribed.inbox is not None:
            subscribed.inbox.fail(error)

    # -- the life of the connection

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
        except Exception as error:  # what a client stumbles over when a peer talks nonsense
            raise ConnectionLostError(
                f"Connecting to {self._connector.where} failed: {type(error).__name__}: {error}."
            ) from error

    def _take(self, connection: Connection) -> None:
        self.connection = connection
        self._opened_at = asyncio.get_running_loop().time()
        self._changed.set()
        if connection.gone.done():
            self._lost(connection, ConnectionLostError("The connection was lost as soon as it was open."))
        if connection.leaving:  # it said so while the connection was being opened
            self._leave_server(connection)

    def _lost(self, connection: Connection, reason: BusError) -> None:
        """A connection is gone; called by the connection itself."""
        if connection is not self.connection:
            return
        self.connection = None
        self.reason = reason
        lasted = asyncio.get_running_loop().time() - self._opened_at
        if lasted >= _LASTING * self._limits.reconnect_max:
            self._attempts = 0
            self._pause = self._limits.reconnect_min
        if not self._closed:
            logger.debug("Connection lost: %s", reason)
            self._on_lost(self, reason)

    async def _supervise(self) -> None:
        """Until the bus is closed, or what refuses is believed."""
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
        """Nobody would notice that the connection is dead, or open it again: whoever uses it is told, instead of waiting."""
        error = ConnectionLostError(
            f"The task that keeps the connection to {self._connector.where} was cancelled: the loop ends before the bus is "
            "closed, or the program cancels all of asyncio.all_tasks() and not only its own."
        )
        if self.connection is None:
            self._give_up(error)
        else:
            self._refuse_all(error)
            self.connection.fail(error)

    async def _reconnect(self) -> None:
        """Try once, after a pause."""
        limit = self._limits.reconnect_limit
        if limit is not None and self._attempts >= limit:
            self._give_up(
                ConnectionLostError(f"Gave up after {limit} attempts (MSIGHT_RECONNECT_LIMIT): {self.reason}")
            )
            return
        self._attempts += 1
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, self._limits.reconnect_max)
        await asyncio.sleep(pause)
        try:
            connection = await self._connect()
            # where the client swallowed the cancellation, as asyncio.wait_for does before Python 3.12
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
        for subscribed in self._subscribed:
            if subscribed.inbox is not None:
                subscribed.inbox.gap(None, "reconnect")
        if self.connection is connection:
            self._on_back(self, self._attempts)

    async def _restore(self, connection: Connection) -> None:
        """Subscribe all on ``connection``, those too that come meanwhile.

        Raises:
            TimeoutError: no progress for ``connect_timeout``.
            ConnectionLostError: the connection was lost again.
            BusError: the broker is busy or not ready; no subscription is to blame.
        """
        while asked := [
            (subscribed, connection.subscribe(route))
            for subscribed in self._subscribed
            for route in subscribed.routes
            if not connection.carries(route)
        ]:
            await self._restored(connection, asked)
        if any(subscribed.paused for subscribed in self._subscribed):
            connection.pause_reading()

    async def _restored(self, connection: Connection, asked: Sequence[tuple[Subscribed, Request]]) -> None:
        """Await every answer to what was written: about one round trip, however many there are."""
        waiting = {request.answer for _, request in asked}
        while waiting and not connection.gone.done():
            before = connection.received_at
            answered, waiting = await asyncio.wait(
                waiting | {connection.gone}, timeout=self._limits.connect_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            waiting -= {connection.gone}
            if not answered and connection.received_at == before:  # an answer may come within one tick of the clock
                raise TimeoutError(f"no answer for {self._limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT)")
        for subscribed, request in asked:
            error = request.answer.exception() if request.answer.done() else None
            if isinstance(error, AuthenticationError) or request.error is not None:
                for route in subscribed.routes:
                    connection.forget_route(route)
                if subscribed in self._subscribed and isinstance(error, BusError):
                    self.fail(subscribed, error)
            elif error is not None:
                raise error  # it passes: the next try may succeed
        if connection.gone.done():
            raise ConnectionLostError("The connection was lost again at once.")

    def _leave_server(self, old: Connection) -> None:
        if self.connection is old and self._moving_from is not old:
            self._moving_from = old
            self._tasks.start(lambda: self._move(old), "move")

    async def _move(self, old: Connection) -> None:
        """The server will leave: try to move to another one for as long as it serves."""
        loop = asyncio.get_running_loop()
        # servers that all leave must not be tried one after the other without a pause
        await asyncio.sleep(max(0.0, self._opened_at + self._limits.reconnect_max - loop.time()))
        if self.connection is not old:
            return
        logger.info("The server of %s will leave; moving to another one.", self._connector.where)
        pause = self._limits.reconnect_min
        problem = await self._move_once(old)
        if problem is not None:
            logger.warning("Not moved yet from a server that will leave: %s", problem)
        while problem is not None and not self._closed:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, self._limits.reconnect_max)
            if self.connection is not old:
                return
            problem = await self._move_once(old)

    async def _move_once(self, old: Connection) -> BaseException | None:
        """Subscribe at the next server, then leave the old one; returns what went wrong."""
        recorder = old.interceptor = DeliveryRecorder()
        try:
            new = await self._connect()
            buffer = new.interceptor = DeliveryBuffer(new.pause_reading)
            try:
                self._restoring = new
                await self._restore(new)
                self._see_that_moving_is_of_use(old, new)
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
            asked = [old.unsubscribe(route) for subscribed in self._subscribed for route in subscribed.routes]
            asked.append(old.ping())
            await asyncio.wait([request.answer for request in asked], timeout=self._limits.pong_timeout)
        finally:
            buffer.deliver_except(recorder.seen)
            new.interceptor = CopyFilter(recorder.seen, new)
            if not any(subscribed.paused for subscribed in self._subscribed):
                new.resume_reading()
            await run_shielded(old.close(within=1.0))
        return None

    def _see_that_moving_is_of_use(self, old: Connection, new: Connection) -> None:
        if self.connection is not old or self._closed:
            raise ConnectionLostError("The old connection was lost meanwhile.")
        if new.leaving:
            raise ConnectionLostError("The next server will leave too.")

    def _consider_refusal(self, error: AuthenticationError) -> None:
        """Believe a refusal at once, or when it has lasted, where files may still change."""
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
        logger.debug("Not connected after %d tries: %s", self._attempts, self.reason)

    def _give_up(self, error: BusError) -> None:
        self._refuse_all(error)
        logger.error("Not reconnecting: %s", error)

    def _refuse_all(self, error: BusError) -> None:
        """Whoever uses the connection from now on gets ``error``."""
        self._failed = error
        self._changed.set()
        for subscribed in list(self._subscribed):
            self.fail(subscribed, error)

    async def close(self, within: float) -> None:
        """Flush what was written, within ``within`` seconds, and close."""
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


async def _answers(requests: Sequence[Request]) -> None:
    """Wait until all are answered; raises the first refusal."""
    await asyncio.wait([request.answer for request in requests])
    for request in requests:
        request.answer.result()
