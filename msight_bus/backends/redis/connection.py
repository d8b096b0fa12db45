"""A connection that redis-py has opened: what goes over it, and what the answers mean.

A RESP2 connection that has subscribed answers only (UN)SUBSCRIBE and PING, hence one that publishes and one that subscribes.
Every command is answered in order, so an answer belongs to the oldest command that is not answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msight_bus.backends.pubsub.connection import Connection, Route, too_large
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.socket_connection import SocketConnection
from msight_bus.backends.redis.errors import broker_error
from msight_bus.backends.redis.health import REPLIES, Health, health_question
from msight_bus.errors import AuthenticationError, BusError, HeaderError
from msight_bus.message import Headers, Message, overhead
from msight_bus.protocol import envelope, redis
from msight_bus.protocol.decoder import Reply
from msight_bus.protocol.envelope import TopicCounter


class RedisConnection(SocketConnection):
    """Publishes or subscribes."""

    def __init__(
        self,
        transport: Any,
        on_lost: Callable[[Connection, BusError], None],
        *,
        raw: bool,
        max_bytes: int,
        max_received: int,
    ) -> None:
        """``raw``: payloads travel without metadata; ``max_bytes``: of a message that is published; ``max_received``: of a
        payload that is received."""
        super().__init__(transport, on_lost, redis.decoder(max_received))
        self._raw = raw
        self._max_bytes = max_bytes
        self._leaving: set[Route] = set()

    def encode(
        self, counter: TopicCounter, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> tuple[tuple[bytes, ...], int]:
        """PUBLISH.

        Raises:
            MessageTooLargeError: Redis would cut this message's subscribers.
            HeaderError: headers or a key with ``MSIGHT_WIRE=raw``, or more of them than travels.
        """
        if self._raw:
            return self._encode_raw(counter, payload, key, headers)
        extension = envelope.pack_extension(key, headers) if headers or key is not None else b""
        if len(extension) > envelope.MAX_EXTENSION_BYTES:
            raise HeaderError(
                f"Key and headers take {len(extension)} bytes together; on Redis at most {envelope.MAX_EXTENSION_BYTES} travel."
            )
        size = envelope.PREFIX_BYTES + len(extension) + len(payload)
        if size > self._max_bytes:
            raise too_large("Redis", size, self._max_bytes, "client-output-buffer-limit pubsub")
        return redis.publish(counter, payload, extension, time.time_ns()), size

    def _encode_raw(
        self, counter: TopicCounter, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> tuple[tuple[bytes, ...], int]:
        if headers or key is not None:
            raise HeaderError("With MSIGHT_WIRE=raw nothing but the payload travels: no headers and no key.")
        if len(payload) > self._max_bytes:
            raise too_large("Redis", len(payload), self._max_bytes, "client-output-buffer-limit pubsub")
        return redis.publish_raw(counter, payload), len(payload)

    def watch_health(self, health: Health, every: float, on_unfit: Callable[[str], None]) -> None:
        """Ask every ``every`` seconds whether the server still reaches the others; ``on_unfit`` gets the reason if not.

        A server that was demoted or taken out of its cluster goes on answering.
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
            if all(isinstance(reply, AuthenticationError) for reply in replies):
                permitted = False  # each question would be an entry of the server's ACL LOG
            problem = health.problem(replies)
            if problem is not None and not self.gone.done():
                on_unfit(problem)

        self.loop.call_later(every, ask)

    def ping(self) -> Request:
        """PING, which RESP2 answers while subscribed too."""
        return self.request(redis.PING)

    def subscribe(self, route: Route) -> Request:
        """SUBSCRIBE; several routes of one topic share the channel."""
        channel = route.topic.encode()
        self.add_route(route, channel)
        return self.request(redis.subscribe(channel), topic=route.topic)

    def unsubscribe(self, route: Route) -> Request:
        """UNSUBSCRIBE with the channel's last route; the confirmation follows what was on its way."""
        channel = route.topic.encode()
        self._leaving.add(route)
        if any(other not in self._leaving for other in self._routes.get(channel, ())):
            request = self.ping()
        else:
            request = self.request(redis.unsubscribe(channel))
        request.answer.add_done_callback(lambda _: self.forget_route(route))
        return request

    def forget_route(self, route: Route) -> None:
        """Deliver no more to the route."""
        self._leaving.discard(route)
        super().forget_route(route)

    def answered(self, reply: Reply) -> None:
        """An answer, in the order of the commands."""
        if reply.kind == "error":
            self.in_flight.refuse(broker_error(reply.text))
        elif reply.kind in ("bulk", "array"):
            self.in_flight.answer(reply.value)
        else:
            self.in_flight.confirm(reply.count)

    def read_foreign(self, topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
        """A message with a key or headers, or none of ours."""
        meta, key, headers, payload = redis.read_foreign(metadata, payload)
        if meta is None:
            return Message(topic, payload, received_at=received_at)
        session, sequence, published = meta
        return Message(
            topic,
            payload,
            Headers(headers),
            key,
            session,
            sequence,
            published * 1e-9,
            received_at,
            _overhead=overhead(headers, key),
        )
