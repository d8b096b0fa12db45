"""The in-memory broker as buses see it over connections: what arrives when, and what is lost on the way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.link import Link
from msight_bus.adapters.live import Connection, LiveFeed, LiveLink
from msight_bus.adapters.memory import Hub
from msight_bus.capabilities import Capabilities
from msight_bus.errors import ConnectionLostError, MessageTooLargeError
from msight_bus.message import NO_HEADERS, Message
from msight_bus.settings import Limits
from msight_bus.testing.clock import wall_clock
from msight_bus.testing.faults import Faults, Injector

_BURST = 1000
"""Frames after which a publisher that never had to wait gives the loop a turn."""
_BACKLOG = 100_000
"""Messages on the way to a client that does not read; at more the broker cuts it, as Redis and NATS do."""


@dataclass(eq=False, slots=True)
class Route:
    """One subscription at the broker.

    Attributes:
        held: messages that come behind the next one.
    """

    topic: str
    group_id: str | None
    link: SimulatedLink
    feed: LiveFeed
    held: list[Message] = field(default_factory=list)


class Broker:
    """Routes what connections bring, as the memory backend does, and lets faults happen on the way out.

    Attributes:
        reachable: whether new clients may connect.
    """

    def __init__(self, faults: Faults) -> None:
        self.injector = Injector(faults)
        self.hub: Hub[Route] = Hub()
        self.reachable = True

    def inject(self, faults: Faults) -> None:
        """Other faults, and none of those that were commanded."""
        self.injector = Injector(faults)

    def take(self, message: Message) -> None:
        """A message has come: send it to every receiver."""
        for route in self.hub.receivers(message.topic):
            reserved = message.topic.startswith("_")
            fault = None if reserved else self.injector.decide(message.topic)
            if fault == "reorder":
                route.held.append(message)
                route.link.loop.call_later(self.injector.faults.seconds, self._release, route, message)
            elif fault != "drop":
                late = self.injector.late() if fault == "delay" else 0.0
                for _ in range(2 if fault == "duplicate" else 1):
                    route.link.send(route, message, late)
                for behind in list(route.held):
                    self._release(route, behind)

    def _release(self, route: Route, message: Message) -> None:
        if message in route.held:
            route.held.remove(message)
            route.link.send(route, message, 0.0)


class _Wire:
    """Stands where a socket's transport would: it can only be closed."""

    def __init__(self) -> None:
        self.link: SimulatedLink | None = None
        self._closing = False

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing and self.link is not None:
            self._closing = True
            self.link.loop.call_soon(self.link.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        """The link asks itself whether it reads."""

    def resume_reading(self) -> None:
        assert self.link is not None
        self.link.loop.call_soon(self.link.receive)


class SimulatedLink(Link, LiveLink):
    """A connection without a socket. The order on it holds, as on TCP."""

    def __init__(self, client: Client, owner: Connection) -> None:
        wire = _Wire()
        super().__init__(wire, owner.lost)
        wire.link = self
        self._client = client
        self._routes: dict[LiveFeed, Route] = {}
        self._written: list[Callable[[], None]] = []  # what the broker does, in order
        self._arriving: deque[tuple[float, Route | None, Message | None]] = deque()  # due by the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    # -- what the bus writes

    def publish(self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Write one message.

        Raises:
            MessageTooLargeError: with its headers it is over ``MSIGHT_MAX_MESSAGE_BYTES``.
        """
        limit = self._client.limits.max_message_bytes
        size = len(payload) + sum(len(name) + len(value) for name, value in (headers or {}).items())
        if size > limit:
            raise MessageTooLargeError(
                f"The message takes {size} bytes with its headers and {limit} are accepted (MSIGHT_MAX_MESSAGE_BYTES).",
                size=size,
                limit=limit,
            )
        stamp = self._client.stamp
        own = dict(headers) if headers else NO_HEADERS
        message = Message(topic, payload, own, key, stamp.session, stamp.next(topic), wall_clock())
        self.in_flight.wrote(topic)
        self._write(partial(self._publish, message))

    def ping(self) -> asyncio.Future[None]:
        """A round trip behind everything written before it."""
        answer: asyncio.Future[None] = self.loop.create_future()
        if self.gone.done():
            answer.set_exception(ConnectionLostError("The connection was lost."))
            answer.exception()
            return answer
        self.in_flight.asked(answer)
        self._write(self._confirm)
        return answer

    def add(self, feed: LiveFeed) -> asyncio.Future[None]:
        """Subscribe, and confirm it by a round trip."""
        route = self._routes[feed] = Route(feed.topic, feed.group_id, self, feed)
        self._write(partial(self._client.broker.hub.join, route))
        return self.ping()

    def remove(self, feed: LiveFeed) -> asyncio.Future[None]:
        """Unsubscribe; nothing comes behind the round trip."""
        self._write(partial(self._leave, feed))
        return self.ping()

    def _leave(self, feed: LiveFeed) -> None:
        route = self._routes.pop(feed, None)
        if route is not None:
            route.held.clear()
            self._client.broker.hub.leave(route)

    def _publish(self, message: Message) -> None:
        self._client.broker.take(message)
        self._confirm()

    def _confirm(self) -> None:
        self.send(None, None, 0.0)

    def _write(self, command: Callable[[], None]) -> None:
        if not self._written:
            self.loop.call_soon(self._tick)
        self._written.append(command)
        if len(self._written) >= _BURST:
            self.burst()

    def _send(self) -> None:
        written, self._written = self._written, []
        for command in written:
            if not self.transport.is_closing():  # the broker may cut this very client
                command()

    # -- what the broker sends

    def send(self, route: Route | None, message: Message | None, late: float) -> None:
        """A message, or with none the confirmation of what the bus wrote, arrives behind what was sent before."""
        arriving = self._arriving
        if len(arriving) >= _BACKLOG:
            self.fail(ConnectionLostError("The simulated broker cuts a client that does not read."))
            return
        due = self.loop.time() + late
        arriving.append((max(due, arriving[-1][0]) if arriving else due, route, message))
        if self._timer is None:
            self._timer = self.loop.call_at(arriving[0][0], self.receive)

    def receive(self) -> None:
        """What is due arrives, unless reading is paused; the messages of a subscription in one list."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.gone.done():
            return
        now = self.received_at = self.loop.time()
        arriving = self._arriving
        while arriving and arriving[0][0] <= now and not self.reading_paused:
            route = arriving[0][1]
            batch: list[Message] = []
            while arriving and arriving[0][0] <= now and arriving[0][1] is route:
                _, _, message = arriving.popleft()
                if message is None:
                    self.in_flight.confirm_one()
                else:
                    batch.append(msgspec.structs.replace(message, received_at=wall_clock()))
            if route is not None:
                route.feed.sink.deliver(batch)
        if arriving and not self.reading_paused:
            self._timer = self.loop.call_at(arriving[0][0], self.receive)

    def connection_lost(self, error: Exception | None) -> None:
        """What was on its way is lost, and the broker forgets the subscriptions."""
        for feed in list(self._routes):
            self._leave(feed)
        self._arriving.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._client.links.discard(self)
        super().connection_lost(error)


class Client:
    """One bus's way to the broker (adapters.live.Connector).

    Attributes:
        reachable: whether it may connect.
        links: its open connections.
    """

    shares_connection = True
    refusal_patience = 0.0
    announces = True

    def __init__(self, broker: Broker, stamp: Stamp, limits: Limits) -> None:
        self.broker = broker
        self.stamp = stamp
        self.limits = limits
        self.reachable = True
        self.links: set[SimulatedLink] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What a live broker does."""
        return Capabilities(
            persistence=False,
            delivery="best-effort",
            routing="broadcast or queue group",
            load_balancing=True,
            replay=False,
            acknowledgement=False,
            native_headers=True,
            tail_loss=True,
            max_message_bytes=self.limits.max_message_bytes,
        )

    async def connect_publisher(self, owner: Connection) -> SimulatedLink:
        """Open a connection.

        Raises:
            ConnectionLostError: the simulation has disconnected this bus.
        """
        if not self.reachable:
            raise ConnectionLostError("The simulated broker is disconnected.")
        link = SimulatedLink(self, owner)
        self.links.add(link)
        return link

    connect_subscriber = connect_publisher

    def cut(self) -> None:
        """Cut every connection; what was on its way is lost."""
        for link in list(self.links):
            link.fail(ConnectionLostError("The simulation has cut the connection."))
