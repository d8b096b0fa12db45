"""`RedisConnection`: commands and replies on a connection that redis-py has opened.

A RESP2 connection that has subscribed accepts only (UN)SUBSCRIBE and PING. Therefore a bus has one connection that publishes and
one that subscribes. Redis answers in order, so a reply belongs to the oldest unanswered command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msight_bus.backends.pubsub.connection import Connection
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.routes import PatternRoute, Route
from msight_bus.backends.pubsub.socket_connection import SocketConnection
from msight_bus.backends.redis.errors import broker_error
from msight_bus.backends.redis.health import REPLIES, Health, health_commands, subscribers_command
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.patterns import is_pattern
from msight_bus.protocol import redis
from msight_bus.protocol.head_cache import Address
from msight_bus.protocol.stream_decoder import Reply


class RedisConnection(SocketConnection):
    """A connection that publishes or subscribes.

    Attributes:
        alone: whether no other server has subscribers.
    """

    def __init__(
        self,
        transport: Any,
        on_lost: Callable[[Connection, BusError], None],
        *,
        raw: bool,
        max_bytes: int,
        max_received: int,
    ) -> None:
        """
        Args:
            transport: the transport of the connected client.
            on_lost: called once, with the connection and the reason.
            raw: whether payloads are published without the envelope.
            max_bytes: maximum bytes of a published message.
            max_received: maximum bytes of a received payload.
        """
        codec = redis.RAW_CODEC if raw else redis.CODEC
        super().__init__(transport, on_lost, codec, max_bytes=max_bytes, max_received=max_received)
        self.alone = True
        self._leaving: set[Route] = set()

    def watch_health(self, health: Health, every: float, on_unfit: Callable[[str], None]) -> None:
        """Check periodically that messages published at this server reach the others.

        A server that was demoted or removed from its cluster still answers PUBLISH.

        Args:
            health: the expected role of the server.
            every: seconds between two checks.
            on_unfit: called with the reason if the server cannot be used.
        """
        last: Request | None = None
        permitted = True

        def ask() -> None:
            nonlocal last
            if self.gone.done() or not permitted:
                return
            if last is None or last.answer.done():
                asked = [self.request(*parts) for parts in ((health_commands(),), *[()] * (REPLIES - 1))]
                last = asked[-1]
                last.answer.add_done_callback(lambda _: judge(asked))
            self.loop.call_later(every, ask)

        def judge(asked: Sequence[Request]) -> None:
            nonlocal permitted
            replies = [request.answer.exception() or request.reply for request in asked]
            self.alone = health.is_alone(replies)
            if all(isinstance(reply, AuthenticationError) for reply in replies):
                permitted = False  # each refused command adds an entry to the server's ACL LOG
            problem = health.problem(replies)
            if problem is not None and not self.gone.done():
                on_unfit(problem)

        self.loop.call_later(every, ask)

    async def has_subscribers(self, topic: str) -> bool | None:
        """Ask whether a channel has a subscriber; ``None`` in a cluster, where each server reports only its own subscribers.

        Raises:
            BusError: the user is not permitted to ask, or the connection was lost.
        """
        if not self.alone:
            return None
        request = self.request(subscribers_command(topic.encode()))
        await request.answer
        reply = request.reply
        return bool(reply[1]) if isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], int) else None

    def ping(self) -> Request:
        """Send a PING, which a subscribed RESP2 connection accepts too."""
        return self.request(redis.PING)

    def subscribe(self, route: Route) -> Request:
        """Send SUBSCRIBE or PSUBSCRIBE. Several routes of one topic or pattern share the subscription."""
        by_pattern = isinstance(route, PatternRoute)
        name = redis.glob_of(route.topic) if by_pattern else route.topic.encode()
        self.add_route(route, name)
        return self.request(redis.subscribe(name, by_pattern=by_pattern), topic=route.topic)

    def unsubscribe(self, route: Route) -> Request:
        """Unsubscribe for the last route of a topic or pattern; messages in transit arrive before the confirmation."""
        by_pattern = isinstance(route, PatternRoute)
        name = redis.glob_of(route.topic) if by_pattern else route.topic.encode()
        self._leaving.add(route)
        sharing: Sequence[Route] = (self._patterns if by_pattern else self._routes).get(name, ())
        if any(other not in self._leaving for other in sharing):
            request = self.ping()
        else:
            request = self.request(redis.unsubscribe(name, by_pattern=by_pattern))
        request.answer.add_done_callback(lambda _: self.forget_route(route))
        return request

    def split(self, address: Address) -> tuple[Address, bytes] | None:
        """Return pattern and channel of a message that matched a pattern."""
        return address if isinstance(address, tuple) else None

    def forget_route(self, route: Route) -> None:
        """Stop delivering to the route."""
        self._leaving.discard(route)
        super().forget_route(route)

    def answered(self, reply: Reply) -> None:
        """Assign a reply to the oldest unanswered command."""
        if reply.kind == "error":
            asked = self.in_flight.oldest_request
            topic = asked.topic if asked is not None else None
            glob = redis.glob_of(topic).decode() if topic is not None and is_pattern(topic) else None
            self.in_flight.refuse(broker_error(reply.text, glob))
        elif reply.kind in ("bulk", "array"):
            self.in_flight.answer(reply.value)
        else:
            self.in_flight.confirm(reply.count)
