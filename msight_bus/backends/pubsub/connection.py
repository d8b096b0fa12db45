"""One open connection to a broker, whatever it runs over: what was written, who receives what, and its end.

A connection lives once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msight_bus.backends.base import TopicStream
from msight_bus.backends.pubsub.in_flight import InFlight, Request, Sender
from msight_bus.errors import BusError, MessageTooLargeError
from msight_bus.message import Message
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.runs import Address


class Route:
    """One topic of one subscription, wherever it is subscribed.

    Attributes:
        topic: its name.
        group_id: its queue group.
        stream: where its messages go.
        on_refused: called when the broker takes the permission away.
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
    """Takes messages on their way to their streams (see handover.py)."""

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Take the messages of one route."""


class Connection:
    """What the connections of all brokers have in common.

    Attributes:
        loop: the event loop.
        congested: a publisher has to await `drained` before it writes more.
        in_flight: what was written and is not confirmed.
        gone: done once the connection is lost or closed.
        received_at: when something last came, by the loop's clock, in seconds.
        reading_paused: a full queue holds up what arrives.
        socket: the socket below, where there is one.
        leaving: whether the server has said that it will leave.
        interceptor: where messages go instead of to their streams, while the bus moves to another server.
    """

    def __init__(self, on_lost: Callable[[Connection, BusError], None]) -> None:
        """``on_lost`` is called once, with the reason."""
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

    # -- what a broker adds

    def publish(
        self,
        sender: Sender,
        counter: TopicCounter,
        payload: bytes,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Write one message; the caller has seen to it that there is room.

        Raises:
            MessageTooLargeError: nothing was written.
        """
        raise NotImplementedError

    def ping(self) -> Request:
        """Ask for a sign of life, behind everything written before."""
        raise NotImplementedError

    def subscribe(self, route: Route) -> Request:
        """Subscribe; answered when the broker has confirmed, or refused."""
        raise NotImplementedError

    def unsubscribe(self, route: Route) -> Request:
        """Unsubscribe; answered when the broker sends no more."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Leave what arrives where it is; the broker notices after a while."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Read again."""
        raise NotImplementedError

    def fail(self, error: BusError) -> None:
        """Give the connection up for ``error``: what it still holds is not sent."""
        raise NotImplementedError

    async def close(self, within: float) -> None:
        """Write what is left and close; whatever is not gone after ``within`` seconds is cut."""
        raise NotImplementedError

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were written and that the operating system does not have yet."""
        return 0

    # -- writing

    def _release(self) -> None:
        self.congested = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    async def drained(self) -> None:
        """Wait until there is room to write, or the connection is gone."""
        while self.congested and not self.gone.done():
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    # -- routes

    def carries(self, route: Route) -> bool:
        """Whether the route is subscribed here, or about to be."""
        return route in self._addresses

    def add_route(self, route: Route, address: Address) -> None:
        """Deliver what comes with ``address`` to the route."""
        self._routes.setdefault(address, []).append(route)
        self._addresses[route] = address

    def forget_route(self, route: Route) -> None:
        """Deliver no more to the route."""
        address = self._addresses.pop(route, None)
        routes = self._routes.get(address, []) if address is not None else []
        if route in routes:
            routes.remove(route)
        if address is not None and not routes:
            self._routes.pop(address, None)

    # -- the end

    def _end(self, reason: BusError) -> None:
        """The connection is gone; what was read is delivered."""
        self._reason = reason
        self.gone.set_result(None)
        self._release()
        self.in_flight.cut(reason)
        self._on_lost(self, reason)


def too_large(broker: str, size: int, limit: int, where: str) -> MessageTooLargeError:
    """The error of a message that a broker would not take."""
    return MessageTooLargeError(
        f"The message takes {size} bytes with its metadata and {broker} takes {limit} ({where}, or MSIGHT_MAX_MESSAGE_BYTES).",
        size=size,
        limit=limit,
    )
