"""nats-py alone, through what it makes public: publish, subscribe with callbacks, rtt (MSIGHT_TRANSPORT=client)."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.client import ClientLink, check_size
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveFeed, LiveLink
from msight_bus.adapters.nats.dialect import NatsDialect, NoTlsError
from msight_bus.adapters.nats.link import PERMISSION, PING_EVERY, from_headers, pack_key
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.settings import NatsServer
from msight_bus.topics import SEQUENCE_TOPIC
from msight_bus.wire import envelope

logger = logging.getLogger("msight_bus")

Step = Callable[[], Awaitable[Any]]


class ClientNatsLink(ClientLink[Step]):
    """Publishes and subscribes."""

    def __init__(self, client: Client, owner: Owner, stamp: Stamp, max_payload: Callable[[], int]) -> None:
        super().__init__(owner.lost)
        self._client = client
        self._owner = owner
        self._stamp = stamp
        self._max_payload = max_payload
        self._subscriptions: dict[LiveFeed, Subscription] = {}
        self._dropped: set[LiveFeed] = set()
        self._refused: dict[str, BusError] = {}

    def publish(self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Publish one message.

        Raises:
            MessageTooLargeError: with its headers it is over the server's max_payload, which would cut the connection.
        """
        more = headers or {}
        suffix = "" if key is None else " " + pack_key(key)
        size = len("NATS/1.0\r\n\r\n") + len(envelope.HEADER) + 48 + len(suffix) + len(": \r\n") + len(payload)
        size += sum(len(name.encode()) + len(value.encode()) + len(": \r\n") for name, value in more.items())
        check_size(size, self._max_payload(), "max_payload of the server")
        stamp = self._stamp
        meta = f"{stamp.session:016x}{stamp.next(topic):016x}{time.time_ns():016x}{suffix}"
        self.in_flight.wrote(topic)
        self.put(partial(self._client.publish, topic, payload, headers={envelope.HEADER: meta, **more}), size + 64)
        if self.in_flight.written % PING_EVERY == 0:
            self.ping()

    def ping(self) -> asyncio.Future[None]:
        """PING behind everything published before it."""
        answer = self.promise()
        if not answer.done():
            self.in_flight.asked(answer)
            self.put(self._round_trip)
        return answer

    async def _round_trip(self) -> None:
        await self._confirm()  # an error ends the link: a PONG that comes later would end nats-py's read loop
        self.heard()
        self.in_flight.confirm_to_answer()

    async def _confirm(self) -> None:
        """A round trip behind all that the client was handed: its PING would overtake what its flusher has yet to write."""
        while self._client.pending_data_size and self._client.is_connected and not self.ending:
            await asyncio.sleep(0)
        await self._client.rtt()

    async def send(self, batch: list[Step]) -> None:
        """Take each step in turn."""
        for step in batch:
            await step()

    # -- subscribing

    def add(self, feed: LiveFeed) -> asyncio.Future[None]:
        """Subscribe, confirmed by a round trip; a refusal comes before its end."""
        return self.ask(partial(self._subscribe, feed))

    async def _subscribe(self, feed: LiveFeed) -> None:
        async def on_message(message: Msg) -> None:
            await self.readable.wait()
            while feed.topic == SEQUENCE_TOPIC and self._behind(feed):
                await asyncio.sleep(0)
                await self.readable.wait()
            self.heard()
            self._dropped.discard(feed)
            feed.sink.deliver([from_headers(feed.topic, dict(message.headers or {}), message.data, time.time())])

        subscription = await self._client.subscribe(feed.topic, queue=feed.group_id or "", cb=on_message)
        self._subscriptions[feed] = subscription
        await self._confirm()
        error = self._refused.pop(feed.topic.lower(), None)
        if error is not None:
            del self._subscriptions[feed]
            await subscription.unsubscribe()
        self.answer(error)

    def _behind(self, announcements: LiveFeed) -> bool:
        """Whether messages that came before an announcement still wait: each subscription has a queue of its own."""
        return any(other.pending_msgs for feed, other in self._subscriptions.items() if feed is not announcements)

    def remove(self, feed: LiveFeed) -> asyncio.Future[None]:
        """Unsubscribe, and deliver what was on its way."""
        return self.ask(partial(self._unsubscribe, feed))

    async def _unsubscribe(self, feed: LiveFeed) -> None:
        subscription = self._subscriptions.get(feed)
        if subscription is not None:
            await subscription.drain()
            del self._subscriptions[feed]
        self.answer()

    # -- the client's callbacks; before the link is started they say why the client could not connect

    async def on_error(self, error: Exception) -> None:
        """What the client reports beside the calls."""
        if not self._tasks:
            raise error  # the client would try again; the supervisor does that, with a new client
        permission = PERMISSION.search(str(error))
        if isinstance(error, nats.errors.SlowConsumerError):
            self._drop(error)
        elif permission is not None:
            self._refuse(permission[1].lower(), permission[2], AuthenticationError(f"NATS refused: {error}"))
        else:
            logger.warning("nats-py reports: %s", error)
            if isinstance(error, nats.errors.UnexpectedEOF | OSError):
                self.fail(ConnectionLostError(f"The broker closed the connection: {error}"))

    async def on_closed(self) -> None:
        """The client has closed itself."""
        self.fail(ConnectionLostError(f"The connection was closed: {self._client.last_error}"))

    def _refuse(self, action: str, topic: str, error: BusError) -> None:
        if action != "publish":
            self._refused[topic.lower()] = error
            return
        for published in [known for known in self._stamp.last if known.lower() == topic.lower()]:
            self._owner.refuse(published, error)  # nats-py tells errors in lower case

    def _drop(self, error: nats.errors.SlowConsumerError) -> None:
        """A subscription was paused for so long that the client's own queue is full; say so once until it goes on."""
        for feed, subscription in self._subscriptions.items():
            if subscription is error.sub and feed not in self._dropped:
                self._dropped.add(feed)
                feed.sink.announce_gap(None, "client")

    async def disconnect(self) -> None:
        """Close the client."""
        await self._client.close()


class Transport(NatsDialect):
    """Connections that nats-py keeps to itself."""

    async def _connect(self, owner: Owner, server: NatsServer, credentials: dict[str, Any]) -> LiveLink:
        client = Client()
        link = ClientNatsLink(client, owner, self._stamp, lambda: self.capabilities.max_message_bytes)
        context = self._nats.tls.context()
        encrypted = _watch(context)

        def guarded(value: str) -> str:
            if context is not None and not encrypted:
                raise NoTlsError("the server does not ask for TLS, and TLS was asked for")
            return value

        credentials = {"token": "", **credentials}  # asked for behind a signature too, and without any credentials
        callables = ("user", "password", "token")  # the client calls them after the handshake
        options = {name: partial(guarded, value) if name in callables else value for name, value in credentials.items()}
        try:
            await self._open(client, server, context, error_cb=link.on_error, closed_cb=link.on_closed, **options)
        except BaseException:
            await link.close(0)
            raise
        link.start()
        return link


def _watch(context: ssl.SSLContext | None) -> list[bool]:
    """Becomes true with the end of a TLS handshake: nats-py uses TLS only if the server asks for it."""
    done: list[bool] = []

    class Watched(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            done.append(True)

    if context is not None:
        context.sslobject_class = Watched
    return done
