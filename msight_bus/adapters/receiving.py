"""From the socket to the queues, synchronously: what the receiving links of Redis and NATS share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic

from msight_bus.adapters.link import Link
from msight_bus.adapters.live import LiveFeed, LiveLink
from msight_bus.errors import BusError
from msight_bus.message import NO_HEADERS, Message
from msight_bus.topics import SEQUENCE_TOPIC
from msight_bus.wire.frames import FrameParser, Reply, Segment

_FULL_READ = 250_000
"""Bytes. uvloop reads 256 000 at a time and asyncio 262 144, so after that many there is more in the socket."""

_HELD_BYTES = 2 * 1024 * 1024
"""Parsed and not yet queued at most: what a queue's byte bound can be exceeded by."""


class ReceivingLink(Link, LiveLink, Generic[Reply]):
    """Parses what comes and delivers each subscription's messages as one list.

    While the socket has more than one read's worth, the lists of some reads are delivered together, since a consumer that
    is woken for one message is what costs most. Nothing waits for that: it ends with the loop's current turn.
    """

    def __init__(self, transport: Any, on_lost: Callable[[Link, BusError], None], parser: FrameParser[Reply]) -> None:
        super().__init__(transport, on_lost)
        self._parser = parser
        self._feeds: dict[bytes, list[LiveFeed]] = {}  # by address
        self._delivers_soon = False

    def _answered(self, reply: Reply) -> None:
        """The broker sent something that is no message."""
        raise NotImplementedError

    def _other(self, topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
        """A message that is not the bus's own, or has a key or headers."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        """Parse a chunk."""
        self.received_at = self.loop.time()
        parser = self._parser
        if (only := parser.only(data)) is not None:
            address, (_, session, sequence, published, payload) = only
            feeds = self._feeds.get(address, ())
            for feed in feeds:
                message = Message(
                    feed.topic, payload, NO_HEADERS, None, session, sequence, published * 1e-9, time.time()
                )
                feed.sink.deliver([message])
            return
        try:
            parser.feed(data)
        except BusError as error:
            self._deliver()
            self.fail(error)
            return
        if len(data) < _FULL_READ or parser.held > _HELD_BYTES:
            self._deliver()
        elif not self._delivers_soon:
            self._delivers_soon = True
            self.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivers_soon = False
        segments, replies = self._parser.take()
        done = 0
        for position, reply in replies:  # in order: whoever is unsubscribed by a reply gets what came before it
            self._deliver_each(segments[done:position])
            done = position
            self._answered(reply)
        self._deliver_each(segments[done:] if done else segments)

    def _deliver_each(self, segments: list[Segment]) -> None:
        received_at = time.time()
        announcements: list[tuple[list[LiveFeed], list[Message]]] = []
        for address, frames, others in segments:
            feeds = self._feeds.get(address)
            if not feeds:
                continue
            topic = feeds[0].topic
            if frames is not None:
                batch = [
                    Message(topic, payload, NO_HEADERS, None, session, sequence, published * 1e-9, received_at)
                    for _, session, sequence, published, payload in frames
                ]
            else:
                batch = [self._other(topic, metadata, payload, received_at) for metadata, payload in others]
            if topic == SEQUENCE_TOPIC:  # what they announce came before them, on other topics
                announcements.append((feeds, batch))
                continue
            for feed in feeds:
                feed.sink.deliver(batch)
        for feeds, batch in announcements:
            for feed in feeds:
                feed.sink.deliver(batch)

    def connection_lost(self, error: Exception | None) -> None:
        """Deliver what was read, then the connection is gone."""
        self._deliver()
        super().connection_lost(error)
