"""The base class of an open connection to a broker (in-flight messages, routes, closing), and the interface that opens one.

A connection is never reused: after a disconnect, `ReconnectingConnection` opens another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msight_bus.backends.pubsub.in_flight import InFlight, Request, Sender
from msight_bus.backends.pubsub.routes import PatternRoute, Route
from msight_bus.capabilities import Capabilities
from msight_bus.errors import BusError
from msight_bus.message import Message
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.head_cache import Address
from msight_bus.topics import MAX_TOPIC_BYTES


class Interceptor(Protocol):
    """A receiver of messages in place of their streams (see handover.py)."""

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Receive a list of messages of one route."""


class Connection:
    """The base class of the connections of all brokers.

    Attributes:
        loop: the event loop.
        congested: whether a publisher has to await `drained` before writing more.
        in_flight: messages and requests that were written and are not confirmed.
        gone: done once the connection is lost or closed.
        received_at: time of the last received data, in seconds of the loop's clock.
        reading_paused: whether reading is paused because a queue is full.
        socket: the socket; ``None`` where there is none.
        leaving: whether the server has announced its shutdown.
        interceptor: receives the messages instead of their streams during a hand-over to another server.
    """

    def __init__(self, on_lost: Callable[[Connection, BusError], None]) -> None:
        """
        Args:
            on_lost: called once, with this connection and the reason.
        """
        self.loop = asyncio.get_running_loop()
        self.congested = False
        self.in_flight = InFlight()
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.received_at = self.loop.time()
        self.reading_paused = False
        self.socket: Any = None
        self.leaving = False
        self.interceptor: Interceptor | None = None
        self._on_lost = on_lost
        self._drained: asyncio.Future[None] | None = None
        self._reason: BusError | None = None
        self._routes: dict[Address, list[Route]] = {}  # by address
        self._patterns: dict[Address, list[PatternRoute]] = {}  # by the first part of what `split` returns
        self._matched: dict[Address, None] = {}  # addresses in `_routes` that patterns have matched, the oldest first
        self._addresses: dict[Route, Address] = {}
        self._ordered = 0  # number of routes whose messages keep the order of the stream

    # -- implemented for each broker

    def publish(
        self,
        sender: Sender,
        counter: TopicCounter,
        payload: bytes,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Write one message. The caller has checked that the connection is not congested.

        Raises:
            MessageTooLargeError: nothing was written.
        """
        raise NotImplementedError

    def ping(self) -> Request:
        """Send a PING; the request is answered after everything written before was processed."""
        raise NotImplementedError

    def subscribe(self, route: Route) -> Request:
        """Subscribe; the request is answered when the broker confirmed or refused."""
        raise NotImplementedError

    def unsubscribe(self, route: Route) -> Request:
        """Unsubscribe; the request is answered when no more messages of the route follow."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Stop reading: received data stays in the socket, and then at the broker, up to its limit."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Resume reading."""
        raise NotImplementedError

    def fail(self, error: BusError) -> None:
        """Abort the connection because of ``error``; unsent data is discarded."""
        raise NotImplementedError

    async def close(self, within: float) -> None:
        """Write buffered data and close; abort if that takes longer than ``within`` seconds."""
        raise NotImplementedError

    async def has_subscribers(self, topic: str) -> bool | None:
        """Ask the broker whether a topic has a subscriber; ``None`` if unknown.

        Raises:
            BusError: the broker refused the request, or the connection was lost.
        """
        return None

    @property
    def unsent_bytes(self) -> int:
        """Number of bytes written and not yet passed to the operating system."""
        return 0

    # -- writing

    def _release(self) -> None:
        self.congested = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    async def drained(self) -> None:
        """Wait until the connection is not congested, or gone."""
        while self.congested and not self.gone.done():
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    # -- routes

    def carries(self, route: Route) -> bool:
        """Return whether the route is subscribed on this connection, or its subscription was requested."""
        return route in self._addresses

    def add_route(self, route: Route, address: Address) -> None:
        """Deliver messages with ``address`` to the route; to a `PatternRoute`, those of which `split` returns ``address``."""
        self._table(route).setdefault(address, []).append(route)
        self._addresses[route] = address
        if route.ordered:
            self._ordered += 1
            self.keep_order(True)

    def forget_route(self, route: Route) -> None:
        """Stop delivering to the route."""
        address = self._addresses.pop(route, None)
        if address is not None:
            table = self._table(route)
            table[address].remove(route)
            if not table[address]:
                del table[address]
            if route.ordered:
                self._ordered -= 1
                self.keep_order(self._ordered > 0)

    def keep_order(self, ordered: bool) -> None:
        """Keep messages in the stream's order across addresses (``True``), or grouped by address (``False``, faster)."""

    def _table(self, route: Route) -> dict[Address, list[Any]]:
        """Return the table of a route that is about to be added or removed."""
        if not isinstance(route, PatternRoute):
            return self._routes
        for address in self._matched:
            del self._routes[address]
        self._matched.clear()
        return self._patterns

    def split(self, address: Address) -> tuple[Address, bytes] | None:
        """Split the address of a message into the part that all messages of its pattern share, and the channel.

        ``None`` for a message that no pattern can have matched.
        """
        return None

    def match(self, address: Address) -> Sequence[Route]:
        """Return the routes of the patterns that match the channel of ``address``, which has no route of its own."""
        parts = self.split(address)
        patterns = self._patterns.get(parts[0]) if parts is not None else None
        if parts is None or patterns is None:
            return ()
        name = parts[1].decode(errors="surrogateescape")
        routes = [route for pattern in patterns if (route := pattern.route_of(name)) is not None]
        if len(name) <= MAX_TOPIC_BYTES:
            if len(self._matched) >= patterns[0].most:
                oldest = next(iter(self._matched))
                del self._matched[oldest], self._routes[oldest]
            self._matched[address] = None
            self._routes[address] = routes
        return routes

    # -- closing

    def _end(self, reason: BusError) -> None:
        """Finish, after all received messages were delivered: fail requests, report unconfirmed messages, call ``on_lost``."""
        self._reason = reason
        self.gone.set_result(None)
        self._release()
        self.in_flight.connection_lost(reason)
        self._on_lost(self, reason)


LostCallback = Callable[[Connection, BusError], None]
RefusedCallback = Callable[[str, BusError], None]
LeavingCallback = Callable[[Connection], None]


class Connector(Protocol):
    """A factory of connections to one broker."""

    shares_connection: bool
    """Whether one connection can publish and subscribe."""

    @property
    def where(self) -> str:
        """The broker and its addresses, for logs and errors."""

    @property
    def announces(self) -> bool:
        """Whether messages carry sequences, so that last sequences can be announced."""

    @property
    def refusal_patience(self) -> float:
        """Time in seconds for which a refusal on reconnecting is retried; 0 where credentials and certificates cannot change."""

    @property
    def capabilities(self) -> Capabilities:
        """The broker's capabilities; final once a connection was opened."""

    async def connect(
        self, on_lost: LostCallback, *, publishes: bool, on_refused: RefusedCallback, on_leaving: LeavingCallback
    ) -> Connection:
        """Open a connection within ``connect_timeout``.

        Args:
            on_lost: called once, with the connection and the reason.
            publishes: whether messages will be published on the connection.
            on_refused: called with a topic and an error, where the broker refuses a message and names only the topic.
            on_leaving: called with the connection when the server announces its shutdown.

        Raises:
            ConnectionLostError: the broker cannot be reached.
            AuthenticationError: the broker refused the credentials, or a certificate was refused.
        """
