"""`SocketConnection`: reads and writes a socket that a client library has connected.

The client library resolves names, does the TLS handshake and authenticates. After that, this module reads and writes the bytes:
received data is decoded and queued in `data_received`, without an await, and the messages written in one event loop iteration are
passed to the operating system in one system call, except the first, which is written at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msight_bus.backends.base import Inbox
from msight_bus.backends.pubsub.connection import Connection
from msight_bus.backends.pubsub.in_flight import Request, Sender
from msight_bus.backends.pubsub.routes import Route
from msight_bus.errors import BusError, ConnectionLostError
from msight_bus.message import NO_HEADERS, Headers, Message, overhead
from msight_bus.protocol.codec import Codec
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.head_cache import Series
from msight_bus.protocol.stream_decoder import NO_UNDECODED, Reply, Segment
from msight_bus.topics import SEQUENCE_TOPIC

BURST_BYTES = 128 * 1024
"""Bytes that are written in one event loop iteration; then publishers have to yield to the event loop."""

_JOIN_BELOW_MEAN = 4096
"""Mean bytes of a part below which joining the parts is cheaper than ``writelines``."""

FRAMES_A_TURN = 4096
"""Maximum number of messages and replies decoded in one event loop iteration."""

_FULL_READ = 250_000
"""Bytes of a read after which more is probably in the socket: uvloop reads 256,000 bytes at once, asyncio 262,144."""

_HELD_BYTES = 2 * 1024 * 1024
"""Maximum number of bytes decoded and not yet delivered. The messages of several full reads are delivered together, because
waking a consumer costs more than decoding a message."""

_LAST_TURNS = 16
"""Multiples of `FRAMES_A_TURN` that are decoded at once when the connection is lost."""

_IDLE_TURNS = 2
"""Event loop iterations without data after a full read; then the socket is considered empty."""

_Batches = dict[Inbox, list[Message]]
_Announcements = list[tuple[Sequence[Route], Segment]]


class SocketConnection(Connection, asyncio.Protocol):
    """The protocol of a transport that was taken over from a client library.

    Attributes:
        transport: an asyncio or uvloop transport.
        ping_at: number of messages written after which a PING follows; infinite where each message is answered.
        max_bytes: maximum bytes of a published message.
        out, out_bytes: parts to write at the end of this event loop iteration, and their total bytes.
    """

    def __init__(
        self,
        transport: Any,
        on_lost: Callable[[Connection, BusError], None],
        codec: Codec,
        *,
        max_bytes: int,
        max_received: int,
    ) -> None:
        """
        Args:
            transport: the transport of the connected client.
            on_lost: called once, with this connection and the reason.
            codec: the protocol.
            max_bytes: maximum bytes of a published message.
            max_received: maximum bytes of a received payload.
        """
        super().__init__(on_lost)
        self.transport: Any = transport
        self.socket = transport.get_extra_info("socket")
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.ping_at: float = math.inf
        self._idle = True  # nothing was written in this iteration
        self._write_paused = False
        self._encode = codec.publish
        self._decoder = codec.decoder(max_received)
        self._decode_metadata = codec.decode_metadata
        self.max_bytes = max_bytes
        self._turn_comes = False
        self._unread: list[bytes] = []  # arrived after this iteration's share was decoded
        self._more = False  # the decoder has undecoded input
        self._stalled = False  # the transport does not read until the next iteration
        self._held_bytes = 0
        self._idle_turns = 0

    def take_over(self, leftover: bytes) -> None:
        """Become the transport's protocol.

        Args:
            leftover: bytes that the client library had read and not parsed.

        Raises:
            ConnectionLostError: the broker has closed the connection.
        """
        if self.transport.is_closing():
            raise ConnectionLostError("The broker closed the connection immediately after connecting.")
        self.transport.set_protocol(self)
        self.transport.resume_reading()  # the client's reader may have paused it
        if leftover:
            self.data_received(leftover)

    def keep_order(self, ordered: bool) -> None:
        """Keep messages in the stream's order across addresses (``True``), or grouped by address (``False``, faster)."""
        self._decoder.keep_order(ordered)

    # -- implemented for each protocol

    def answered(self, reply: Reply) -> None:
        """Process a reply of the broker: anything but a message."""
        raise NotImplementedError

    # -- writing

    def publish(
        self,
        sender: Sender,
        counter: TopicCounter,
        payload: bytes,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Write one message. The caller has checked that the connection is not congested.

        Raises:
            MessageTooLargeError, HeaderError: nothing was written.
        """
        parts, size = self._encode(counter, payload, key, headers, time.time_ns(), self.max_bytes)
        if self._idle:
            self._write_first(parts)
        else:
            self.out += parts
        self.out_bytes += size + 64
        in_flight = self.in_flight
        if (run := in_flight.last) is not None and run.sender is sender:
            in_flight.written += 1
            run.count += 1
        else:
            in_flight.wrote(sender)
        if self.out_bytes >= BURST_BYTES:
            self._burst()
        if in_flight.written >= self.ping_at:
            self.ping()

    def write(self, *parts: bytes) -> None:
        """Write parts together with the others of this event loop iteration."""
        if self._idle:
            self._write_first(parts)
        else:
            self.out += parts
        self.out_bytes += sum([len(part) for part in parts])
        if self.out_bytes >= BURST_BYTES:
            self._burst()

    def request(self, *parts: bytes, topic: str | None = None) -> Request:
        """Write a command that the broker answers; ``topic``: the topic that the command subscribes to."""
        request = Request(self.loop, topic)
        if self.gone.done():
            request.finish(self._reason)
        else:
            self.in_flight.asked(request)
            self.write(*parts)
        return request

    def _write_first(self, parts: tuple[bytes, ...]) -> None:
        """Write the first parts of an iteration at once: where messages are rare, there is nothing to wait for."""
        self._idle = False
        self.loop.call_soon(self._tick)
        if not self.transport.is_closing():
            self.transport.writelines(parts)

    def _burst(self) -> None:
        """Write everything now, and make publishers yield to the event loop before they write more."""
        self._send()
        self.congested = True
        self.loop.call_soon(self._tick)

    def _send(self) -> None:
        out, self.out = self.out, []
        if out and not self.transport.is_closing():
            if self.out_bytes > _JOIN_BELOW_MEAN * len(out):
                self.transport.writelines(out)  # large payloads are not copied
            else:
                self.transport.write(b"".join(out))
        self.out_bytes = 0

    def _tick(self) -> None:
        self._send()
        self._idle = True
        if not self._write_paused:
            self._release()

    def pause_writing(self) -> None:
        """Called when the transport's buffer is over its high-water mark."""
        self._write_paused = True
        self.congested = True

    def resume_writing(self) -> None:
        """Called when the transport's buffer is below its low-water mark."""
        self._write_paused = False
        self._release()

    @property
    def unsent_bytes(self) -> int:
        """Number of bytes written and not yet passed to the operating system."""
        return self.out_bytes + int(self.transport.get_write_buffer_size())

    # -- reading

    def data_received(self, data: bytes) -> None:
        """Decode received bytes, and deliver the complete messages."""
        self.received_at = self.loop.time()
        self._idle_turns = 0
        if self._more or self._unread:
            self._unread.append(data)
            return
        if (single := self._decoder.single(data)) is not None:  # one whole message: the usual case below saturation
            address, frame = single
            routes: Sequence[Route] | None = self._routes.get(address)
            if routes is None:
                routes = self.match(address)
            if len(routes) == 1 and self.interceptor is None and (inbox := (route := routes[0]).inbox) is not None:
                _, session, sequence, published, payload = frame
                at = time.time()
                batch = [Message(route.name, payload, NO_HEADERS, None, session, sequence, published * 1e-9, at)]
                if not route.stream.follows(session, sequence, at):
                    route.stream.observe(batch)
                inbox.put(batch)
            else:
                self._deliver_segment(routes, (address, [frame], []), time.time())
            return
        self._held_bytes += len(data)
        full = len(data) >= _FULL_READ
        self._decode(data)
        if full or self._more:
            self._stall()
        if not full or self._more or self._held_bytes > _HELD_BYTES:
            self._deliver()

    def _decode(self, data: bytes) -> None:
        try:
            self._more = self._decoder.feed(data, FRAMES_A_TURN - self._decoder.taken)
        except BusError as error:
            self._more = False
            self._unread.clear()
            self._deliver()
            self.fail(error)

    def _stall(self) -> None:
        """Stop reading until the next event loop iteration."""
        if not self._stalled:
            self._stalled = True
            if not self.reading_paused:
                self.transport.pause_reading()
        self._next_turn()

    def _next_turn(self) -> None:
        if not self._turn_comes:
            self._turn_comes = True
            self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Continue after an iteration with more input than its share: decode, then read, then deliver the decoded messages."""
        self._turn_comes = False
        if self.gone.done() or self.reading_paused:
            return
        if self._more or self._unread:
            self._decode(b"" if self._more else self._unread.pop(0))
            self._deliver()
            self._next_turn()
        elif self._stalled:
            self._stalled = False
            self._idle_turns = 0
            if not self.transport.is_closing():
                self.transport.resume_reading()
            self._next_turn()
        elif self._held_bytes:
            self._idle_turns += 1
            if self._idle_turns > _IDLE_TURNS:
                self._deliver()
            else:
                self._next_turn()

    def _deliver(self) -> None:
        """Deliver the decoded messages; those of one subscription are queued together."""
        self._held_bytes = 0
        received_at = time.time()
        announcements: _Announcements = []
        batches: _Batches = {}
        for item in self._decoder.take():  # in order: messages before the reply to an unsubscribe are still delivered
            if not isinstance(item, tuple):
                if batches:
                    _put(batches)
                self.answered(item)
            elif len(item) == 2:
                self._collect_each(item, received_at, batches, announcements)
            else:
                self._collect(item, received_at, batches, announcements)
        if batches:
            _put(batches)
        for routes, segment in announcements:
            self._deliver_segment(routes, segment, received_at)

    def _collect(self, segment: Segment, received_at: float, batches: _Batches, announcements: _Announcements) -> None:
        """Add the messages of a segment to the batch of their subscription; deliver them if several routes receive them."""
        routes: Sequence[Route] | None = self._routes.get(segment[0])
        if routes is None:
            routes = self.match(segment[0])
        if not routes:
            return
        route = routes[0]
        inbox = route.inbox
        if inbox is not None and len(routes) == 1 and self.interceptor is None:
            messages = self._messages(route.name, segment, received_at)
            route.stream.observe(messages)
            if (batch := batches.get(inbox)) is None:
                batches[inbox] = messages
            else:
                batch += messages
        elif route.topic == SEQUENCE_TOPIC:  # after the messages that they announce, which are on other topics
            announcements.append((routes, segment))
        else:
            _put(batches)
            self._deliver_segment(routes, segment, received_at)

    def _collect_each(
        self, series: Series, received_at: float, batches: _Batches, announcements: _Announcements
    ) -> None:
        """As `_collect`, with the messages of a series."""
        routes_of, interceptor = self._routes.get, self.interceptor
        inbox: Inbox | None = None
        batch: list[Message] = []
        for address, frame in zip(*series, strict=True):
            routes = routes_of(address)
            if interceptor is None and routes is not None and len(routes) == 1:
                route = routes[0]
                if (owner := route.inbox) is not None:
                    if owner is not inbox:
                        inbox = owner
                        batch = batches.setdefault(inbox, [])
                    _, session, sequence, published, payload = frame
                    message = Message(
                        route.name, payload, NO_HEADERS, None, session, sequence, published * 1e-9, received_at
                    )
                    if not route.stream.follows(session, sequence, received_at):
                        route.stream.observe([message])
                    batch.append(message)
                    continue
            self._collect((address, [frame], NO_UNDECODED), received_at, batches, announcements)
            inbox = None

    def _deliver_segment(self, routes: Sequence[Route], segment: Segment, received_at: float) -> None:
        """Deliver to each route. Two subscriptions never share a `Message`, because a consumer can change its state."""
        for route in tuple(routes):
            batch = self._messages(route.name, segment, received_at)
            if self.interceptor is None:
                route.stream.deliver(batch)
            else:
                self.interceptor.deliver(route, batch)

    def _messages(self, topic: str, segment: Segment, received_at: float) -> list[Message]:
        _, frames, undecoded = segment
        if frames is None:
            return [
                self._message(topic, metadata, payload, received_at)
                if metadata
                else Message(topic, payload, NO_HEADERS, None, None, None, None, received_at)
                for metadata, payload in undecoded
            ]
        if len(frames) == 1:  # faster, and usual with many topics
            _, session, sequence, published, payload = frames[0]
            return [Message(topic, payload, NO_HEADERS, None, session, sequence, published * 1e-9, received_at)]
        return [
            Message(topic, payload, NO_HEADERS, None, session, sequence, published * 1e-9, received_at)
            for _, session, sequence, published, payload in frames
        ]

    def _message(self, topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
        """Make a `Message` of an `Undecoded` message: one with a key or headers, or of a foreign publisher."""
        meta, key, headers, payload = self._decode_metadata(metadata, payload)
        if not headers and key is None and meta is None:
            return Message(topic, payload, received_at=received_at)
        session, sequence, published = (None, None, None) if meta is None else (*meta[:2], meta[2] * 1e-9)
        size = overhead(headers, key)
        return Message(topic, payload, Headers(headers), key, session, sequence, published, received_at, _overhead=size)

    def eof_received(self) -> bool:
        """Called when the broker closes the connection; the transport then closes."""
        return False

    def pause_reading(self) -> None:
        """Stop reading: data stays in the socket, and then at the broker, up to its limit."""
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            if not self._stalled:
                self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading."""
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.received_at = self.loop.time()
            if not self._stalled:  # else `_next_turn` resumes reading
                self.transport.resume_reading()
            if self._stalled or self._held_bytes:
                self._next_turn()

    def fail(self, error: BusError) -> None:
        """Abort the connection because of ``error``; unsent data is discarded, in the kernel's buffer too."""
        if self._reason is None:
            self._reason = error
        sock = self.socket
        if sock is not None and not self.transport.is_closing():
            with contextlib.suppress(OSError, ValueError):  # else the kernel would send the data after newer messages
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Deliver the received data, and end. Called by the transport when the connection is lost."""
        if self.gone.done():
            return
        self._finish_reading()
        self.out = []
        reason = self._reason
        if reason is None:
            reason = ConnectionLostError(f"The broker closed the connection{f': {error}' if error else ''}.")
            reason.__cause__ = error
        self._end(reason)

    def _finish_reading(self) -> None:
        """Deliver the received data up to a bound; the rest becomes part of the gap."""
        for _ in range(_LAST_TURNS):
            self._deliver()
            if not (self._more or self._unread):
                return
            self._decode(b"" if self._more else self._unread.pop(0))
            self._deliver()  # makes room for as many again
        self._deliver()

    async def close(self, within: float) -> None:
        """Write buffered data and close; abort if that takes longer than ``within`` seconds."""
        if not self.gone.done():
            self._send()
            self.transport.close()
            await asyncio.wait((self.gone,), timeout=within)
            if not self.gone.done():
                self.transport.abort()
                await asyncio.wait((self.gone,), timeout=1.0)


def _put(batches: _Batches) -> None:
    """Queue the messages of each subscription."""
    for inbox, batch in batches.items():
        inbox.put(batch)
    batches.clear()
