"""`RedisConnection`: commands and replies on a connection that redis-py has opened.

A RESP2 connection that has subscribed accepts only (UN)SUBSCRIBE and PING. Therefore a bus has one connection that publishes and
one that subscribes. Redis answers in order, so a reply belongs to the oldest unanswered command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msight_bus.backends.pubsub.connection import Connection, Route
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.socket_connection import SocketConnection
from msight_bus.backends.redis.errors import broker_error
from msight_bus.backends.redis.health import REPLIES, Health, health_question, subscribers_question
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.protocol import redis
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
                asked = [self.request(*parts) for parts in ((health_question(),), *[()] * (REPLIES - 1))]
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
        """Ask whether a channel has a subscriber; ``None`` in a cluster, where each server knows only its own subscribers.

        Raises:
            BusError: the user is not permitted to ask, or the connection was lost.
        """
        if not self.alone:
            return None
        request = self.request(subscribers_question(topic.encode()))
        await request.answer
        reply = request.reply
        return bool(reply[1]) if isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], int) else None

    def ping(self) -> Request:
        """Send a PING, which a subscribed RESP2 connection accepts too."""
        return self.request(redis.PING)

    def subscribe(self, route: Route) -> Request:
        """Send SUBSCRIBE. Several routes of one topic share the channel."""
        channel = route.topic.encode()
        self.add_route(route, channel)
        return self.request(redis.subscribe(channel), topic=route.topic)

    def unsubscribe(self, route: Route) -> Request:
        """Send UNSUBSCRIBE for the last route of a channel; messages in transit arrive before the confirmation."""
        channel = route.topic.encode()
        self._leaving.add(route)
        if any(other not in self._leaving for other in self._routes.get(channel, ())):
            request = self.ping()
        else:
            request = self.request(redis.unsubscribe(channel))
        request.answer.add_done_callback(lambda _: self.forget_route(route))
        return request

    def forget_route(self, route: Route) -> None:
        """Stop delivering to the route."""
        self._leaving.discard(route)
        super().forget_route(route)

    def answered(self, reply: Reply) -> None:
        """Assign a reply to the oldest unanswered command."""
        if reply.kind == "error":
            self.in_flight.refuse(broker_error(reply.text))
        elif reply.kind in ("bulk", "array"):
            self.in_flight.answer(reply.value)
        else:
            self.in_flight.confirm(reply.count)
