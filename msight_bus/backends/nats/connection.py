"""`NatsConnection`: commands and replies on a connection that nats-py has opened.

A PONG confirms everything written before its PING. An -ERR does not name a command: a PING follows each SUB, so that an -ERR
before the PONG belongs to that SUB. If the server closes the connection instead of sending the PONG, the -ERR was about the
connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from msight_bus.backends.failover import Meaning
from msight_bus.backends.nats.errors import meaning_of, refused_subject
from msight_bus.backends.pubsub.connection import Connection, LeavingCallback, RefusedCallback
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.routes import PatternRoute, Route, UncountedStream
from msight_bus.backends.pubsub.socket_connection import SocketConnection
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.message import Message
from msight_bus.protocol import nats
from msight_bus.protocol.head_cache import Address
from msight_bus.protocol.stream_decoder import Reply
from msight_bus.topics import ALIVE_TOPIC

logger = logging.getLogger("msight_bus")

_PING_EVERY = 8192
"""Messages after which a PING follows without a flush: bounds the number of unconfirmed messages that are tracked."""


class _Answers(UncountedStream):
    """The receiver of the server's answer to a request without subscribers (pubsub.routes.Route.stream)."""

    def __init__(self) -> None:
        self.came = False
        self.error: BusError | None = None

    def deliver(self, batch: list[Message]) -> None:
        """Note the answer."""
        self.came = True

    def refused(self, error: BusError) -> None:
        """Note that the subscription was refused."""
        self.error = error


class NatsConnection(SocketConnection):
    """A connection that publishes and subscribes."""

    def __init__(
        self,
        transport: Any,
        on_lost: Callable[[Connection, BusError], None],
        on_refused: RefusedCallback,
        on_leaving: LeavingCallback,
        *,
        max_payload: int,
        max_received: int,
        on_info: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """
        Args:
            transport: the transport of the connected client.
            on_lost: called once, with the connection and the reason.
            on_refused: called with a subject and an error when the server refuses a message.
            on_leaving: called with the connection when the server announces its shutdown.
            max_payload: maximum bytes of a published message, headers included.
            max_received: maximum bytes of a received payload.
            on_info: called with the fields of each INFO of the server.
        """
        super().__init__(transport, on_lost, nats.CODEC, max_bytes=max_payload, max_received=max_received)
        self._max_received = max_received
        self._on_refused = on_refused
        self._on_leaving = on_leaving
        self._on_info = on_info
        self._sids: dict[Route, bytes] = {}
        self._last_sid = 0
        self.ping_at = _PING_EVERY
        self._unclear = ""  # an -ERR that is about a subscription if a PONG follows
        self._owes_pong = False

    def ping(self) -> Request:
        """Send a PING."""
        self.ping_at = self.in_flight.written + _PING_EVERY
        return self.request(nats.PING)

    def subscribe(self, route: Route) -> Request:
        """Send SUB and PING; the PONG confirms the subscription."""
        self._last_sid += 1
        sid = b"%d" % self._last_sid
        if route.group_id is not None:  # the server sends a copy of a message to any of the entries that match
            sid = b"g%d.%b" % (route.subscription, sid)
        self._sids[route] = sid
        subject = route.topic.encode()
        address = nats.address_of(subject, sid)
        self.add_route(route, self.split(address)[0] if isinstance(route, PatternRoute) else address)
        group = None if route.group_id is None else route.group_id.encode()
        request = self.request(nats.subscribe(subject, sid, group), nats.PING, topic=route.topic)
        request.answer.add_done_callback(lambda answer: self._subscribed(route, answer.exception()))
        return request

    def _subscribed(self, route: Route, error: BaseException | None) -> None:
        if error is not None:
            self.forget_route(route)
            if not self.gone.done():
                optional = route.topic.startswith(ALIVE_TOPIC)  # the subscriber logs the refusal
                logger.log(logging.DEBUG if optional else logging.WARNING, "%s", error)

    def split(self, address: Address) -> tuple[Address, bytes]:
        """Return the part of the subscription id that is in the address of a message, and its subject."""
        assert isinstance(address, bytes)
        subject, _, sid = address.rpartition(b" ")
        return sid, subject

    def unsubscribe(self, route: Route) -> Request:
        """Send UNSUB and PING; no message of the route follows the PONG."""
        sid = self._sids.get(route)
        commands = (nats.PING,) if sid is None else (nats.unsubscribe(sid), nats.PING)
        request = self.request(*commands)
        request.answer.add_done_callback(lambda _: self.forget_route(route))
        return request

    async def has_subscribers(self, topic: str) -> bool:
        """Ask whether a subject has a subscriber: NATS answers a request without subscribers at once.

        Raises:
            BusError: the server refused, or the connection was lost.
        """
        answers = _Answers()
        route = Route(f"{topic}.{self._last_sid + 1}", None, answers, answers.refused)
        await self.subscribe(route).answer
        try:
            self.write(b"PUB %b %b 0\r\n\r\n" % (topic.encode(), route.topic.encode()))
            await self.ping().answer  # the answer comes before the PONG
        finally:
            self.unsubscribe(route)
        if answers.error is not None:
            raise answers.error
        return not answers.came

    def forget_route(self, route: Route) -> None:
        """Stop delivering to the route."""
        self._sids.pop(route, None)
        super().forget_route(route)

    def answered(self, reply: Reply) -> None:
        """Process a control line."""
        if reply.kind == "PONG":
            self._unclear = ""
            self.in_flight.confirm_to_request()
        elif reply.kind == "PING":
            if self._write_paused:  # a peer that does not read gets one PONG for any number of PINGs
                self._owes_pong = True
            else:
                self.write(nats.PONG)
        elif reply.kind == "INFO":
            info = nats.parse_info(reply)
            limit = info.get("max_payload")
            if type(limit) is int and limit > 0:
                self.max_bytes = min(self._max_received, limit)
            self._on_info(info)
            if info.get("ldm") is True and not self.gone.done():  # lame duck mode
                self.leaving = True
                self._on_leaving(self)
        elif reply.kind == "error":
            self._refuse(reply.text)

    def resume_writing(self) -> None:
        """Called when the transport's buffer is below its low-water mark."""
        super().resume_writing()
        if self._owes_pong:
            self._owes_pong = False
            self.write(nats.PONG)

    def _refuse(self, text: str) -> None:
        """Process the text of an ``-ERR``: assign the error to a message, a subscription or the connection."""
        refused = refused_subject(text)
        meaning = meaning_of(text)
        if refused is not None and refused.operation == "publish":
            self._on_refused(refused.subject, AuthenticationError(f"NATS refused: {text}"))
        elif refused is not None:
            self._refuse_subscription(refused.sid, refused.subject, AuthenticationError(f"NATS refused: {text}"))
        elif meaning is Meaning.CREDENTIALS:
            self.fail(AuthenticationError(f"NATS refused: {text}"))
        elif meaning is Meaning.PERMISSION:  # of an unknown operation; NATS does not close the connection
            logger.warning("NATS reports: %s", text)
        elif (request := self.in_flight.oldest_request) is not None and request.topic is not None:
            self._unclear = text
            request.error = BusError(f"NATS refused the subscription to {request.topic!r}: {text}")
        else:  # NATS closes the connection after any other error
            logger.warning("NATS reports: %s", text)
            self.fail(ConnectionLostError(f"NATS reports: {text}"))

    def _end(self, reason: BusError) -> None:
        if self._unclear and self._reason is None:
            reason = ConnectionLostError(f"NATS closed the connection: {self._unclear}")
        super()._end(reason)

    def _refuse_subscription(self, sid: str | None, subject: str, error: AuthenticationError) -> None:
        request = self.in_flight.oldest_request
        if sid is None and request is not None and request.topic is not None:
            request.error = error
            return
        if sid is None:
            refused = [route for route in self._sids if route.topic == subject]
        else:
            address = nats.address_of(subject.encode(), sid.encode())
            sharing = *self._routes.get(address, ()), *self._patterns.get(self.split(address)[0], ())
            refused = [route for route in sharing if self._sids.get(route) == sid.encode()]
        for route in refused:
            self.forget_route(route)
            route.on_refused(error)
