"""RESP2 on a Redis connection: one link publishes, another one subscribes.

Source: the Redis serialization protocol specification (RESP2) and the PUBLISH and SUBSCRIBE command pages. A RESP2
connection that has subscribed answers only (UN)SUBSCRIBE and PING, hence the two kinds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import hiredis

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.link import BURST_BYTES, Link
from msight_bus.adapters.live import Connection, LiveFeed, LiveLink
from msight_bus.adapters.receiving import ReceivingLink
from msight_bus.adapters.redis.errors import broker_error
from msight_bus.adapters.redis.health import REPLIES, Health, health_question
from msight_bus.errors import BusError, ConnectionLostError, HeaderError, MessageTooLargeError
from msight_bus.message import Message
from msight_bus.wire import envelope
from msight_bus.wire.resp import RespParser

_PING = b"*1\r\n$4\r\nPING\r\n"
_NO_HEAD = (-1, b"")


class PublishLink(Link, LiveLink):
    """Writes PUBLISH commands and counts their replies.

    Beside them it asks again and again whether the server still reaches the others: a server that was demoted or taken
    out of its cluster goes on answering.
    """

    def __init__(
        self,
        transport: Any,
        owner: Connection,
        on_lost: Callable[[Link, BusError], None],
        stamp: Stamp,
        *,
        raw: bool,
        max_bytes: int,
        health: Health,
        check_every: float,
        on_unfit: Callable[[str], None],
    ) -> None:
        """
        Args:
            health: judges the server's answers.
            check_every: seconds between two questions.
            on_unfit: called with the reason once the server no longer reaches the others.
        """
        super().__init__(transport, on_lost)
        self._health = health
        self._check_every = check_every
        self._on_unfit = on_unfit
        self._answers: deque[list[object] | None] = deque()  # for each round trip: where its answer goes, if anywhere
        self._check_timer: asyncio.TimerHandle | None = None
        self._owner = owner
        self._stamp = stamp
        self._raw = raw
        self._max_bytes = max_bytes
        self._heads: dict[str, tuple[int, bytes]] = {}  # by topic: the last size, and the command up to the payload
        self._reader = hiredis.Reader()

    def publish(self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Write one PUBLISH.

        Raises:
            MessageTooLargeError: Redis would cut this message's subscribers.
            HeaderError: headers or a key with ``MSIGHT_WIRE=raw``.
        """
        if self._raw:
            if headers or key is not None:
                raise HeaderError("With MSIGHT_WIRE=raw nothing but the payload travels: no headers and no key.")
            size = len(payload)
        else:
            extension = envelope.pack_extension(key, headers) if headers or key is not None else b""
            size = envelope.PREFIX_BYTES + len(extension) + len(payload)
        if size > self._max_bytes:
            self._refuse_size(size)
        head_size, head = self._heads.get(topic, _NO_HEAD)
        if head_size != size:
            head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(topic), topic.encode(), size)
            self._heads[topic] = size, head
        if self._raw:
            parts: tuple[bytes, ...] = head, payload, b"\r\n"
        else:
            stamp = self._stamp
            sequence = stamp.last[topic] = stamp.last.get(topic, 0) + 1
            prefix = envelope.pack_prefix(envelope.MAGIC, len(extension), stamp.session, sequence, time.time_ns())
            parts = head, prefix + extension if extension else prefix, payload, b"\r\n"
        if self.idle:
            self.write_first(parts)
        else:
            self.out += parts
        self.out_bytes += size + 64
        self.in_flight.wrote(topic)
        if self.out_bytes >= BURST_BYTES:
            self.burst()

    def _refuse_size(self, size: int) -> None:
        raise MessageTooLargeError(
            f"The message takes {size} bytes with its metadata and Redis takes {self._max_bytes} "
            "(client-output-buffer-limit pubsub, or MSIGHT_MAX_MESSAGE_BYTES).",
            size=size,
            limit=self._max_bytes,
        )

    def ping(self) -> asyncio.Future[None]:
        """PING behind everything written before it."""
        answer: asyncio.Future[None] = self.loop.create_future()
        self.in_flight.asked(answer)
        self._answers.append(None)
        self.write(_PING)
        return answer

    def take_over(self, leftover: bytes) -> None:
        """Become the transport's protocol, and begin to ask."""
        super().take_over(leftover)
        self._check_timer = self.loop.call_later(self._check_every, self._check)

    def _check(self) -> None:
        """Ask whether the server still reaches the others, unless it has not answered the last time."""
        if not any(answers is not None for answers in self._answers):
            answers: list[object] = []
            for _ in range(REPLIES):
                self.in_flight.asked(self.loop.create_future())
                self._answers.append(answers)
            self.write(health_question())
        self._check_timer = self.loop.call_later(self._check_every, self._check)

    def _judge(self, answers: list[object]) -> None:
        if all(isinstance(answer, Exception) and str(answer).startswith("NOPERM") for answer in answers):
            self._stop_checking()  # each question would be an entry of the server's ACL LOG
        problem = self._health.problem(answers)
        if problem is not None and not self.gone.done():
            self._on_unfit(problem)

    def _stop_checking(self) -> None:
        if self._check_timer is not None:
            self._check_timer.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        """Ask no more."""
        self._stop_checking()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Count the replies; an error belongs to the oldest message."""
        self.received_at = self.loop.time()
        reader = self._reader
        reader.feed(data)
        confirm = self.in_flight.confirm_one
        while (reply := reader.gets()) is not False:
            topic = confirm()
            if topic is None:
                answers = self._answers.popleft() if self._answers else None
                if answers is not None:
                    answers.append(reply)
                    if len(answers) == REPLIES:
                        self._judge(answers)
            elif isinstance(reply, hiredis.ReplyError):
                self._owner.refuse(topic, broker_error(str(reply)))


class SubscribeLink(ReceivingLink[str | None]):
    """Receives the messages of its channels."""

    def __init__(self, transport: Any, on_lost: Callable[[Link, BusError], None]) -> None:
        super().__init__(transport, on_lost, RespParser())
        self._asked: deque[asyncio.Future[None]] = deque()
        self._leaving: set[LiveFeed] = set()

    def add(self, feed: LiveFeed) -> asyncio.Future[None]:
        """SUBSCRIBE; several feeds of one topic share the channel."""
        channel = feed.topic.encode()
        self._feeds.setdefault(channel, []).append(feed)
        return self._ask(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(channel), channel))

    def remove(self, feed: LiveFeed) -> asyncio.Future[None]:
        """UNSUBSCRIBE with the channel's last feed; the confirmation follows what was on its way."""
        channel = feed.topic.encode()
        self._leaving.add(feed)
        if any(other not in self._leaving for other in self._feeds.get(channel, ())):
            answer = self.ping()
        else:
            answer = self._ask(b"*2\r\n$11\r\nUNSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(channel), channel))
        answer.add_done_callback(lambda _: self._forget(channel, feed))
        return answer

    def _forget(self, channel: bytes, feed: LiveFeed) -> None:
        self._leaving.discard(feed)
        feeds = self._feeds.get(channel, [])
        if feed in feeds:
            feeds.remove(feed)
        if not feeds:
            self._feeds.pop(channel, None)

    def ping(self) -> asyncio.Future[None]:
        """PING, which RESP2 answers while subscribed too."""
        return self._ask(_PING)

    def _ask(self, command: bytes) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = self.loop.create_future()
        if self.gone.done():
            answer.set_exception(ConnectionLostError("The connection was lost."))
            answer.exception()
            return answer
        self._asked.append(answer)
        self.write(command)
        return answer

    def _answered(self, reply: str | None) -> None:
        self._answer(None if reply is None else broker_error(reply))

    def _answer(self, error: BusError | None) -> None:
        if self._asked:
            answer = self._asked.popleft()
            if answer.done():
                return
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits for an answer."""
        super().connection_lost(error)
        while self._asked:
            self._answer(ConnectionLostError("The connection was lost before Redis answered."))

    def _other(self, topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
        return _with_extension(topic, metadata, payload, received_at)


def _with_extension(topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
    """A message with a key or headers of its own, or none of ours."""
    if not metadata:
        return Message(topic, payload, received_at=received_at)
    session, sequence, published = envelope.unpack_meta(metadata[:24])
    try:
        key, headers = envelope.unpack_extension(metadata[24:])
    except ValueError:  # it only looked like ours
        prefix = envelope.prefix(session, sequence, published, metadata[24:])
        return Message(topic, prefix + payload, received_at=received_at)
    return Message(topic, payload, headers, key, session, sequence, published * 1e-9, received_at)
