"""The in-process backend, for unit tests and single-process pipelines, without a server.

All buses on one event loop share an `Exchange`, which has the role of the server. Messages that a bus publishes in one event loop
iteration are delivered at its end, in one list for each topic and subscription; while a subscription has several topics, in the
order of publishing, in one list for each run of messages of one topic. The members of a group take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from msight_bus.backends.base import BLOCKED, Blocked
from msight_bus.backends.pubsub.backend import PubSubBackend
from msight_bus.backends.pubsub.connection import Connection, LeavingCallback, LostCallback, RefusedCallback
from msight_bus.backends.pubsub.in_flight import Request, Sender
from msight_bus.backends.pubsub.publishing import PubSubPublisher
from msight_bus.backends.pubsub.routes import PatternRoute, Route
from msight_bus.capabilities import Capabilities
from msight_bus.errors import BusError, ClosedError, ConnectionLostError, PublishTimeoutError, too_large
from msight_bus.events import BusEvent
from msight_bus.message import NO_HEADERS, Headers, Message, overhead
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.settings import BusSettings, Limits

Sent = tuple[bytes, Mapping[str, str], str | None, int, int, float]
"""A message in transit: payload, headers, key, session, sequence, publish time in POSIX seconds."""

_BURST = 1000
"""Number of messages after which a publisher has to yield to the event loop."""

_BACKLOG_MESSAGES = 100_000
_BACKLOG_BYTES = 64 * 1024 * 1024
"""Maximum pending messages and bytes of a connection that does not read; the exchange then closes it, as Redis and NATS do."""


class Filter(Protocol):
    """A source of faults between the exchange and its subscriptions (msight_bus.testing)."""

    def pass_on(self, delivery: Delivery, messages: list[Sent]) -> None:
        """Call ``delivery.arrive``, now or later, with the messages that arrive."""

    def forget(self, delivery: Delivery) -> None:
        """Remove a subscription that has ended."""


class Delivery:
    """One subscription to a topic or pattern at the exchange, or one topic of a pattern.

    Attributes:
        route: the route that receives the messages.
        connection: the connection of the route.
        entry: the route that was subscribed.
    """

    __slots__ = ("connection", "entry", "route")

    def __init__(self, route: Route, connection: MemoryConnection, entry: Route | None = None) -> None:
        self.route = route
        self.connection = connection
        self.entry = entry or route

    def arrive(self, messages: list[Sent], late: float = 0.0) -> None:
        """Deliver messages ``late`` seconds from now, after those in transit."""
        self.connection.arrive(self, messages, late)


_Groups = dict[str | None, list[Delivery]]


class Exchange:
    """The in-process broker: routes messages to subscriptions.

    Attributes:
        filter: injects faults; ``None`` without faults.
        ordered: subscriptions to topics and patterns whose messages keep the order of publishing over topics.
    """

    def __init__(self) -> None:
        self.filter: Filter | None = None
        self.ordered: set[Delivery] = set()
        self._topics: dict[str, _Groups] = {}
        self._patterns: dict[Delivery, PatternRoute] = {}
        self._matched: dict[str, _Groups] = {}  # by topic, with the deliveries of patterns
        self._full: dict[str, set[Delivery]] = {}  # by topic: paused subscriptions
        self._full_patterns: dict[Delivery, PatternRoute] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def join(self, delivery: Delivery) -> None:
        """Add a subscription."""
        self._matched.clear()
        route = delivery.route
        if route.ordered:
            self.ordered.add(delivery)
        if isinstance(route, PatternRoute):
            self._patterns[delivery] = route
        else:
            self._topics.setdefault(route.topic, {}).setdefault(route.group_id, []).append(delivery)

    def leave(self, delivery: Delivery) -> None:
        """Remove a subscription."""
        self._matched.clear()
        self._patterns.pop(delivery, None)
        self.ordered.discard(delivery)
        route = delivery.route
        groups = self._topics.get(route.topic, {})
        members = groups.get(route.group_id, [])
        if delivery in members:
            members.remove(delivery)
            if not members:
                del groups[route.group_id]
            if not groups:
                del self._topics[route.topic]
        self.resume(delivery)
        if self.filter is not None:
            self.filter.forget(delivery)

    def has_subscribers(self, topic: str) -> bool:
        """Return whether a topic has a subscriber."""
        return topic in self._topics

    def pause(self, delivery: Delivery) -> None:
        """Pause a subscription: publishers on its topics have to wait."""
        if isinstance(delivery.route, PatternRoute):
            self._full_patterns[delivery] = delivery.route
        else:
            self._full.setdefault(delivery.route.topic, set()).add(delivery)

    def resume(self, delivery: Delivery) -> None:
        """Resume a subscription; wake the publishers on topics of which no other subscription is paused."""
        full = self._full.get(topic := delivery.route.topic)
        if full is not None and delivery in full:
            full.discard(delivery)
            if not full:
                del self._full[topic]
                self._wake(topic)
        elif self._full_patterns.pop(delivery, None) is not None:
            for waited in list(self._waiting):
                self._wake(waited)

    def _wake(self, topic: str) -> None:
        waiting = None if self.is_full(topic) else self._waiting.pop(topic, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def is_full(self, topic: str) -> bool:
        """Return whether a subscription of the topic is paused."""
        patterns = self._full_patterns
        return topic in self._full or (bool(patterns) and any(route.takes(topic) for route in patterns.values()))

    async def room(self, topic: str) -> None:
        """Wait until no subscription of the topic is paused."""
        while self.is_full(topic):
            waiting = self._waiting.get(topic)
            if waiting is None or waiting.done():
                waiting = self._waiting[topic] = asyncio.get_running_loop().create_future()
            await asyncio.shield(waiting)

    def _groups_of(self, topic: str) -> _Groups:
        if not self._patterns:
            return self._topics.get(topic, {})
        groups = self._matched.get(topic)
        if groups is None:
            groups = {group_id: list(members) for group_id, members in self._topics.get(topic, {}).items()}
            for delivery, pattern in self._patterns.items():
                if (route := pattern.route_of(topic)) is not None:
                    groups.setdefault(route.group_id, []).append(Delivery(route, delivery.connection, pattern))
            if len(self._matched) >= pattern.most:
                self._matched.clear()
            self._matched[topic] = groups
        return groups

    def take(self, topic: str, messages: list[Sent]) -> None:
        """Deliver messages to every subscription without a group, and in turn to the members of each group."""
        for group_id, members in list(self._groups_of(topic).items()):
            if group_id is None or len(members) == 1:
                for delivery in list(members):
                    self._pass_on(delivery, messages)
                continue
            count = len(members)
            first = members[:count]
            for at, delivery in enumerate(first):
                if share := messages[at::count]:
                    self._pass_on(delivery, share)
            turn = len(messages) % count
            members[:] = first[turn:] + first[:turn]

    def _pass_on(self, delivery: Delivery, messages: list[Sent]) -> None:
        if self.filter is None or delivery.route.topic.startswith("_"):
            delivery.arrive(messages)
        else:
            self.filter.pass_on(delivery, messages)


class MemoryConnection(Connection):
    """A connection without a socket. Keeps the order, as TCP does."""

    def __init__(self, exchange: Exchange, on_lost: LostCallback, limits: Limits, clock: Callable[[], float]) -> None:
        super().__init__(on_lost)
        self._clock = clock
        self._exchange = exchange
        self._max_bytes = limits.max_message_bytes
        self._deliveries: dict[Route, Delivery] = {}
        self._written: list[tuple[str, Sent] | Callable[[], None]] = []  # in order
        self._written_bytes = 0
        self._ticking = False
        self._closing = False
        self._arriving: deque[tuple[float, Delivery, list[Sent]]] = deque()  # due by the loop's clock
        self._backlog_messages = 0
        self._backlog_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- called by the bus

    def publish(
        self,
        sender: Sender,
        counter: TopicCounter,
        payload: bytes,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Write one message.

        Raises:
            MessageTooLargeError: payload and headers exceed ``MSIGHT_MAX_MESSAGE_BYTES``.
        """
        size = len(payload)
        if headers:
            size += sum([len(name) + len(value) for name, value in headers.items()])
            headers = Headers(headers)
        if size > self._max_bytes:
            raise too_large("the memory backend", size, self._max_bytes)
        counter.sequence = sequence = counter.sequence + 1
        sent = payload, headers or NO_HEADERS, key, counter.session, sequence, self._clock()
        self.in_flight.wrote(sender)
        self._written.append((counter.topic, sent))
        self._written_bytes += size
        if not self._ticking:
            self._ticking = True
            self.loop.call_soon(self._tick)
        if len(self._written) >= _BURST or self._written_bytes >= _BACKLOG_BYTES:
            self.congested = True

    def _command(self, command: Callable[[], None]) -> Request:
        """Run ``command`` at the exchange after everything written before; the request is answered then."""
        request = Request(self.loop)
        if self._closing:
            request.finish(self._reason or ConnectionLostError("The connection was lost."))
            return request
        self.in_flight.asked(request)
        self._written.append(command)
        if not self._ticking:
            self._ticking = True
            self.loop.call_soon(self._tick)
        return request

    def ping(self) -> Request:
        """Send a PING, which is answered after everything written before was processed."""
        return self._command(lambda: None)

    def subscribe(self, route: Route) -> Request:
        """Subscribe at the exchange."""
        self.add_route(route, route.topic.encode())
        delivery = self._deliveries[route] = Delivery(route, self)
        return self._command(lambda: self._exchange.join(delivery))

    async def has_subscribers(self, topic: str) -> bool:
        """Return whether a topic has a subscriber."""
        await self.ping().answer
        return self._exchange.has_subscribers(topic)

    def unsubscribe(self, route: Route) -> Request:
        """Unsubscribe; nothing is delivered after the request is answered."""
        request = self._command(lambda: self._leave(route))
        request.answer.add_done_callback(lambda _: self.forget_route(route))
        return request

    def _leave(self, route: Route) -> None:
        delivery = self._deliveries.pop(route, None)
        if delivery is not None:
            self._exchange.leave(delivery)

    def _tick(self) -> None:
        self._ticking = False
        self._send()
        self._release()

    def _send(self) -> None:
        written, self._written = self._written, []
        self._written_bytes = 0
        runs: list[tuple[str, list[Sent]]] = []
        opened: dict[str, list[Sent]] = {}  # by topic, the list that further messages join
        count = 0
        for item in written:
            if self._closing:  # delivering can close this connection
                return
            if isinstance(item, tuple):
                topic, sent = item
                messages = opened.get(topic)
                if messages is None:
                    if self._exchange.ordered:
                        opened.clear()
                    messages = opened[topic] = []
                    runs.append((topic, messages))
                messages.append(sent)
                count += 1
            else:
                self._take(runs)
                runs, opened = [], {}
                item()
                self._confirm(count + 1)
                count = 0
        self._take(runs)
        self._confirm(count)

    def _take(self, runs: list[tuple[str, list[Sent]]]) -> None:
        for topic, messages in runs:
            self._exchange.take(topic, messages)

    def _confirm(self, count: int) -> None:
        """Confirm ``count`` entries, after the messages in transit."""
        self.received_at = self.loop.time()
        self.in_flight.confirm(count)

    # -- called by the exchange

    def arrive(self, delivery: Delivery, messages: list[Sent], late: float) -> None:
        """Deliver messages ``late`` seconds from now, after those in transit."""
        if not late and not self._arriving and not self.reading_paused:
            self._receive(delivery, messages)
            return
        due = self.loop.time() + late
        if self._arriving:
            due = max(due, self._arriving[-1][0])
        self._arriving.append((due, delivery, messages))
        self._backlog_messages += len(messages)
        self._backlog_bytes += sum([len(sent[0]) for sent in messages])
        if self._backlog_messages > _BACKLOG_MESSAGES or self._backlog_bytes > _BACKLOG_BYTES:
            self.fail(ConnectionLostError("The broker closed the connection: the client does not read."))
        elif self._timer is None and not self.reading_paused:
            self._timer = self.loop.call_at(due, self._receive_due)

    def _receive_due(self) -> None:
        self._timer = None
        arriving = self._arriving
        while arriving and arriving[0][0] <= self.loop.time() and not self.reading_paused and not self.gone.done():
            _, delivery, messages = arriving.popleft()
            self._backlog_messages -= len(messages)
            self._backlog_bytes -= sum([len(sent[0]) for sent in messages])
            self._receive(delivery, messages)
        if arriving and self._timer is None and not self.reading_paused and not self.gone.done():
            self._timer = self.loop.call_at(arriving[0][0], self._receive_due)

    def _receive(self, delivery: Delivery, messages: list[Sent]) -> None:
        if delivery.entry not in self._addresses:
            return
        received_at = self._clock()
        self.received_at = self.loop.time()
        topic = delivery.route.name
        delivery.route.stream.deliver(
            [
                Message(
                    topic,
                    payload,
                    headers,
                    key,
                    session,
                    sequence,
                    published_at,
                    received_at,
                    _overhead=0 if headers is NO_HEADERS and key is None else overhead(headers, key),
                )
                for payload, headers, key, session, sequence, published_at in messages
            ]
        )

    def pause_reading(self) -> None:
        """Stop delivering; pending messages are kept up to a limit."""
        self.reading_paused = True
        for delivery in self._deliveries.values():
            self._exchange.pause(delivery)

    def resume_reading(self) -> None:
        """Resume delivery."""
        if self.reading_paused:
            self.reading_paused = False
            self.received_at = self.loop.time()
            for delivery in self._deliveries.values():
                self._exchange.resume(delivery)
            if self._arriving and self._timer is None:
                self._timer = self.loop.call_at(self._arriving[0][0], self._receive_due)

    def fail(self, error: BusError) -> None:
        """Abort the connection because of ``error``: messages in transit are lost, the subscriptions end."""
        if self._closing:
            return
        self._closing = True
        for route in list(self._deliveries):
            self._leave(route)
        self._arriving.clear()
        self._written.clear()
        if self._timer is not None:
            self._timer.cancel()
        self.loop.call_soon(self._end, error)

    async def close(self, within: float) -> None:
        """Send the written messages, and close within ``within`` seconds."""
        self._send()
        self.fail(ClosedError("The connection was closed."))
        await asyncio.wait((self.gone,), timeout=within)


_exchanges: WeakKeyDictionary[asyncio.AbstractEventLoop, Exchange] = WeakKeyDictionary()


def now() -> float:
    """Return POSIX seconds of this machine's clock."""
    return time.time()


class MemoryConnector:
    """The connector to the exchange of this event loop, or to a given one (pubsub.reconnecting.Connector)."""

    where = "the memory broker"
    shares_connection = True
    announces = True
    refusal_patience = 0.0

    def __init__(self, limits: Limits, exchange: Exchange | None = None, clock: Callable[[], float] = now) -> None:
        self._limits = limits
        self._exchange = exchange
        self._clock = clock

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of a broker without persistence."""
        return Capabilities(
            routing="broadcast or queue group",
            load_balancing=True,
            native_headers=True,
            tail_loss=True,
            max_message_bytes=self._limits.max_message_bytes,
        )

    async def connect(
        self, on_lost: LostCallback, *, publishes: bool, on_refused: RefusedCallback, on_leaving: LeavingCallback
    ) -> MemoryConnection:
        """Open a connection; never fails."""
        return MemoryConnection(self.exchange, on_lost, self._limits, self._clock)

    @property
    def exchange(self) -> Exchange:
        """The exchange that this connector connects to."""
        if self._exchange is None:
            self._exchange = _exchanges.setdefault(asyncio.get_running_loop(), Exchange())
        return self._exchange


class MemoryPublisher(PubSubPublisher):
    """One publisher on one topic, which waits while a subscription of the topic is paused: there is no buffer in between."""

    __slots__ = ("_exchange", "_name")

    def __init__(self, exchange: Exchange, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._exchange = exchange
        self._name = self._topic.counter.topic

    def try_send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Blocked | None:
        """Send one message, if the connection has room and no subscription of the topic is paused (`TopicPublisher.try_send`)."""
        if self._exchange.is_full(self._name):
            return BLOCKED
        return super().try_send(payload, key, headers)

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Send one message when no subscription of the topic is paused.

        Raises:
            PublishTimeoutError: not accepted within ``publish_timeout``; nothing was sent.
            BusError: as `PubSubPublisher.send`.
        """
        within = self._limits.publish_timeout
        try:
            async with asyncio.timeout(within):
                await self._exchange.room(self._name)
        except TimeoutError:
            raise PublishTimeoutError(
                f"A subscriber's queue on {self._name!r} was full for {within:g} s (MSIGHT_PUBLISH_TIMEOUT); nothing was sent."
            ) from None
        await super().send(payload, key, headers)


class MemoryBackend(PubSubBackend):
    """The in-process backend (backends.base.Backend)."""

    def __init__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> None:
        self._memory = MemoryConnector(settings.limits)
        super().__init__(settings, self._memory, report, new_session)

    def publisher(self, topic: str, name: str | None, *, keeps: bool, creates: bool = True) -> MemoryPublisher:
        """Make a publisher on ``topic``; ``name`` and ``creates`` are not used."""
        exchange = self._memory.exchange
        return MemoryPublisher(exchange, self._topics, topic, self._publishing, self._limits, self._report, keeps=keeps)
