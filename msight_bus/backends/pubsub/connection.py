"""The base class of an open connection to a broker: in-flight messages, routes to subscriptions, closing.

A connection is never reused: after a disconnect, `ReconnectingConnection` opens another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msight_bus.backends.base import TopicStream
from msight_bus.backends.pubsub.in_flight import InFlight, Request, Sender
from msight_bus.errors import BusError
from msight_bus.message import Message
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.head_cache import Address


class Route:
    """One topic of one subscription. Stays the same when the subscription is resubscribed on another connection.

    Attributes:
        topic: the topic's name.
        group_id: queue group; ``None``: every message is received.
        stream: receives the messages.
        on_refused: called when the broker revokes the permission to subscribe.
    """

    __slots__ = ("group_id", "on_refused", "stream", "topic")

    def __init__(
        self, topic: str, group_id: str | None, stream: TopicStream, on_refused: Callable[[BusError], None]
    ) -> None:
        self.topic = topic
        self.group_id = group_id
        self.stream = stream
        self.on_refused = on_refused


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
        """``on_lost`` is called once, with this connection and the reason."""
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
        self._addresses: dict[Route, Address] = {}

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
        """Read again."""
        raise NotImplementedError

    def fail(self, error: BusError) -> None:
        """Abort the connection because of ``error``; unsent data is discarded."""
        raise NotImplementedError

    async def close(self, within: float) -> None:
        """Write buffered data and close; abort if that takes longer than ``within`` seconds."""
        raise NotImplementedError

    async def has_subscribers(self, topic: str) -> bool | None:
        """Ask the broker whether a topic has a subscriber; ``None`` if the broker cannot tell.

        Raises:
            BusError: the broker refused the question, or the connection was lost.
        """
        return None

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that were not yet passed to the operating system."""
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
        """Whether the route is subscribed on this connection, or its subscription was requested."""
        return route in self._addresses

    def add_route(self, route: Route, address: Address) -> None:
        """Deliver messages with ``address`` to the route."""
        self._routes.setdefault(address, []).append(route)
        self._addresses[route] = address

    def forget_route(self, route: Route) -> None:
        """Stop delivering to the route."""
        address = self._addresses.pop(route, None)
        routes = self._routes.get(address, []) if address is not None else []
        if route in routes:
            routes.remove(route)
        if address is not None and not routes:
            self._routes.pop(address, None)

    # -- closing

    def _end(self, reason: BusError) -> None:
        """Finish, after all received messages were delivered: fail requests, report unconfirmed messages, call ``on_lost``."""
        self._reason = reason
        self.gone.set_result(None)
        self._release()
        self.in_flight.cut(reason)
        self._on_lost(self, reason)
