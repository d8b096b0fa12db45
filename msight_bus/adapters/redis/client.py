"""redis-py alone, through what it makes public: pipelines of PUBLISH, and PubSub (MSIGHT_TRANSPORT=client)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.client import ClientLink, check_size
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveFeed, LiveLink
from msight_bus.adapters.redis.dialect import REFUSALS, RedisDialect
from msight_bus.adapters.redis.link import with_extension
from msight_bus.errors import AuthenticationError, BusError, HeaderError
from msight_bus.message import NO_HEADERS, Message
from msight_bus.wire import envelope

Ask = Callable[[], Awaitable[Any]]


class PublishLink(ClientLink[tuple[str, bytes] | None]):
    """Publishes in pipelines, one behind the other; None stands for a PING."""

    def __init__(self, client: Redis, owner: Owner, stamp: Stamp, *, raw: bool, max_bytes: int) -> None:
        super().__init__(owner.lost)
        self._client = client
        self._owner = owner
        self._stamp = stamp
        self._raw = raw
        self._max_bytes = max_bytes

    def publish(self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Put one message into the next pipeline.

        Raises:
            MessageTooLargeError: Redis would cut this message's subscribers.
            HeaderError: headers or a key with ``MSIGHT_WIRE=raw``.
        """
        extension = envelope.pack_extension(key, headers)
        if self._raw and extension:
            raise HeaderError("With MSIGHT_WIRE=raw nothing but the payload travels: no headers and no key.")
        size = len(payload) + (0 if self._raw else envelope.PREFIX_BYTES + len(extension))
        check_size(size, self._max_bytes, "client-output-buffer-limit pubsub")
        if not self._raw:
            sequence = self._stamp.next(topic)
            payload = envelope.prefix(self._stamp.session, sequence, time.time_ns(), extension) + payload
        self.in_flight.wrote(topic)
        self.put((topic, payload), size + 64)

    def ping(self) -> asyncio.Future[None]:
        """PING behind everything published before it."""
        answer = self.promise()
        if not answer.done():
            self.in_flight.asked(answer)
            self.put(None)
        return answer

    async def send(self, batch: list[tuple[str, bytes] | None]) -> None:
        """One pipeline; an error reply belongs to its message."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for entry in batch:
                if entry is None:
                    pipeline.ping()
                else:
                    pipeline.publish(*entry)
            replies = await pipeline.execute(raise_on_error=False)
        self.heard()
        for reply in replies:
            topic = self.in_flight.confirm_one()
            if isinstance(reply, ResponseError) and topic is not None:
                self._owner.refuse(topic, _refusal(reply))

    async def disconnect(self) -> None:
        """Close the client."""
        await self._client.aclose()


class SubscribeLink(ClientLink[Ask]):
    """Reads one PubSub, which carries all subscriptions."""

    def __init__(self, client: Redis, pubsub: PubSub, owner: Owner) -> None:
        super().__init__(owner.lost)
        self._client = client
        self._pubsub = pubsub
        self._feeds: dict[str, list[LiveFeed]] = {}

    def add(self, feed: LiveFeed) -> asyncio.Future[None]:
        """SUBSCRIBE; several feeds of one topic share the channel."""
        self._feeds.setdefault(feed.topic, []).append(feed)
        return self.ask(partial(self._pubsub.subscribe, feed.topic))

    def remove(self, feed: LiveFeed) -> asyncio.Future[None]:
        """UNSUBSCRIBE with the channel's last feed; the confirmation follows what was on its way."""
        last = self._feeds.get(feed.topic) == [feed]
        answer = self.ask(partial(self._pubsub.unsubscribe, feed.topic)) if last else self.ping()
        answer.add_done_callback(lambda _: self._forget(feed))
        return answer

    def _forget(self, feed: LiveFeed) -> None:
        feeds = self._feeds.get(feed.topic, [])
        if feed in feeds:
            feeds.remove(feed)
        if not feeds:
            self._feeds.pop(feed.topic, None)

    def ping(self) -> asyncio.Future[None]:
        """PING, which a subscribed connection answers too."""
        return self.ask(self._pubsub.ping)

    async def send(self, batch: list[Ask]) -> None:
        """Hand over each command; `read` meets the answers."""
        for ask in batch:
            await ask()

    async def read(self) -> None:
        """Deliver what comes."""
        while not self.ending:
            await self.readable.wait()
            try:
                message = await self._pubsub.get_message(timeout=None)
            except ResponseError as error:
                self.answer(_refusal(error))
                continue
            self.heard()
            if message is None:
                continue
            if message["type"] == "message":
                topic = message["channel"].decode()
                arrived = [_read(topic, message["data"])]
                for feed in self._feeds.get(topic, ()):
                    feed.sink.deliver(arrived)
            else:
                self.answer()

    async def disconnect(self) -> None:
        """Close the client."""
        await self._pubsub.aclose()
        await self._client.aclose()


class Transport(RedisDialect):
    """Connections that redis-py keeps to itself."""

    async def connect_publisher(self, owner: Owner) -> LiveLink:
        """Open a client that publishes, and learn what it may send."""
        client = await self._first(self._open_and_ask)
        raw = self._redis.wire == "raw"
        link = PublishLink(client, owner, self._stamp, raw=raw, max_bytes=self._max_bytes)
        link.start()
        return link

    async def connect_subscriber(self, owner: Owner) -> LiveLink:
        """Open a client that subscribes."""
        client, pubsub = await self._first(self._open_pubsub)
        link = SubscribeLink(client, pubsub, owner)
        link.start(link.read())
        return link

    async def _open_and_ask(self, kind: type[AbstractConnection], options: dict[str, Any]) -> Redis:
        pool = ConnectionPool(kind, **options)
        client = Redis.from_pool(pool)
        try:
            await pool.release(await pool.get_connection())  # a refusal here is none of the question
            self._learn(await _output_limit(client))
        except BaseException:
            await client.aclose()
            raise
        return client

    async def _open_pubsub(self, kind: type[AbstractConnection], options: dict[str, Any]) -> tuple[Redis, PubSub]:
        client = Redis.from_pool(ConnectionPool(kind, redis_connect_func=_connect_once(), **options))
        pubsub = client.pubsub()
        try:
            await pubsub.connect()
        except BaseException:
            await pubsub.aclose()
            await client.aclose()
            raise
        return client, pubsub


async def _output_limit(client: Redis) -> bytes:
    try:
        found = await client.config_get("client-output-buffer-limit")
    except ResponseError:
        return b""  # not permitted to ask
    return str(next(iter(found.values()), "")).encode()


def _connect_once() -> Callable[[AbstractConnection], Awaitable[None]]:
    """A ``redis_connect_func`` that keeps PubSub from reconnecting and resubscribing where nobody sees the gap."""
    used: list[AbstractConnection] = []

    async def connect(connection: AbstractConnection) -> None:
        if used:
            raise RedisConnectionError("the connection was lost")
        used.append(connection)
        await connection.on_connect()

    return connect


def _read(topic: str, data: bytes) -> Message:
    length = envelope.prefix_length(data, 0, len(data))
    meta, payload, received_at = data[8:length], data[length:], time.time()
    if len(meta) != envelope.PREFIX_BYTES - 8:
        return with_extension(topic, meta, payload, received_at)
    session, sequence, published = envelope.unpack_meta(meta)
    return Message(topic, payload, NO_HEADERS, None, session, sequence, published * 1e-9, received_at)


def _refusal(error: ResponseError) -> BusError:
    kind = AuthenticationError if isinstance(error, REFUSALS) else BusError
    return kind(f"Redis refused: {error}")
