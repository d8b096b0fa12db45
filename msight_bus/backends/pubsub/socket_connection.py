"""A connection over a socket, from the moment its client library has opened it.

The client did what is hard: name resolution, TLS, authentication. From then on the bytes are ours: what arrives is
decoded where it arrives and queued without an await, and what is written in one tick of the loop leaves in one system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msight_bus.backends.pubsub.connection import Connection, Route
from msight_bus.backends.pubsub.in_flight import Request, Sender
from msight_bus.errors import BusError, ConnectionLostError
from msight_bus.message import NO_HEADERS, Message
from msight_bus.protocol.decoder import Decoder, Reply, Segment
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.topics import SEQUENCE_TOPIC

BURST_BYTES = 128 * 1024
"""Written at once, and after which a publisher that never had to wait gives the loop a turn."""

_JOIN_BELOW_MEAN = 4096
"""Where parts are smaller on average, joining them costs less than handing them over one by one."""

FRAMES_A_TURN = 4096
"""Messages and replies that are decoded in one turn of the loop."""

_FULL_READ = 250_000
"""Bytes. uvloop reads 256,000 at a time and asyncio 262,144, so after that many there is more in the socket."""

_HELD_BYTES = 2 * 1024 * 1024
"""Read and not yet queued at most: with as many messages as a turn decodes at most, what some full reads brought is queued
together, since a consumer that is woken for one message is what costs most."""

_LAST_TURNS = 16
"""Times `FRAMES_A_TURN` that are decoded at once when the connection is gone."""

_IDLE_TURNS = 2
"""Turns of the loop after which a socket that was full is known to be empty."""


class SocketConnection(Connection, asyncio.Protocol):
    """Takes over the transport of a connected client.

    Attributes:
        transport: of asyncio or uvloop.
        out, out_bytes: what this tick writes.
    """

    def __init__(self, transport: Any, on_lost: Callable[[Connection, BusError], None], decoder: Decoder) -> None:
        super().__init__(on_lost)
        self.transport: Any = transport
        self.socket = transport.get_extra_info("socket")
        self.out: list[bytes] = []
        self.out_bytes = 0
        self._idle = True  # nothing was written in this tick
        self._write_paused = False
        self._decoder = decoder
        self._turn_comes = False
        self._unread: list[bytes] = []  # came in a turn that had its share already
        self._more = False  # the decoder has input left
        self._stalled = False  # the transport does not read until the next turn
        self._held_bytes = 0
        self._idle_turns = 0

    def take_over(self, leftover: bytes) -> None:
        """Become the transport's protocol; ``leftover`` is what the client had read and not parsed."""
        if self.transport.is_closing():
            raise ConnectionLostError("The broker closed the connection as soon as it was open.")
        self.transport.set_protocol(self)
        self.transport.resume_reading()  # the client's reader may have paused it
        if leftover:
            self.data_received(leftover)

    # -- what a broker's protocol adds

    def encode(
        self, counter: TopicCounter, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> tuple[tuple[bytes, ...], int]:
        """Count and encode one message; returns its parts and its size.

        Raises:
            MessageTooLargeError: the broker would not take it.
        """
        raise NotImplementedError

    def answered(self, reply: Reply) -> None:
        """The broker sent something that is no message."""
        raise NotImplementedError

    def read_foreign(self, topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
        """A message that is not the bus's own, or has a key or headers."""
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
        """Write one message; the caller has seen to it that there is room.

        Raises:
            MessageTooLargeError: nothing was written.
        """
        parts, size = self.encode(counter, payload, key, headers)
        if self._idle:
            self._write_first(parts)
        else:
            self.out += parts
        self.out_bytes += size + 64
        self.in_flight.wrote(sender)
        if self.out_bytes >= BURST_BYTES:
            self._burst()

    def write(self, *parts: bytes) -> None:
        """Write with the others of this tick."""
        if self._idle:
            self._write_first(parts)
        else:
            self.out += parts
        self.out_bytes += sum([len(part) for part in parts])
        if self.out_bytes >= BURST_BYTES:
            self._burst()

    def request(self, *parts: bytes, topic: str | None = None) -> Request:
        """Write a command that is answered; ``topic`` is what it subscribes to."""
        request = Request(self.loop, topic)
        if self.gone.done():
            request.finish(self._reason)
        else:
            self.in_flight.asked(request)
            self.write(*parts)
        return request

    def _write_first(self, parts: tuple[bytes, ...]) -> None:
        """What comes first in a tick leaves at once, for a stream of single messages has nothing to wait for."""
        self._idle = False
        self.loop.call_soon(self._tick)
        if not self.transport.is_closing():
            self.transport.writelines(parts)

    def _burst(self) -> None:
        """So much was written in this tick that it leaves at once, and the loop gets a turn before there is more."""
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
        """The transport's buffer is over its high-water mark."""
        self._write_paused = True
        self.congested = True

    def resume_writing(self) -> None:
        """The transport's buffer is under its low-water mark."""
        self._write_paused = False
        self._release()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were written and that the operating system does not have yet."""
        return self.out_bytes + int(self.transport.get_write_buffer_size())

    # -- reading

    def data_received(self, data: bytes) -> None:
        """Decode a chunk, and deliver what is complete."""
        self.received_at = self.loop.time()
        self._idle_turns = 0
        if self._more or self._unread:
            self._unread.append(data)
            return
        if (only := self._decoder.only(data)) is not None:  # one message, as mostly where nothing is saturated
            address, frame = only
            self._deliver_segment(self._routes.get(address, ()), (address, [frame], []), time.time())
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
        """Read no more in this turn of the loop."""
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
        """A turn after one that had more to read than its share: go on decoding, then reading, then deliver what is held."""
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
        self._held_bytes = 0
        received_at = time.time()
        announcements: list[tuple[list[Route], Segment]] = []
        for item in self._decoder.take():  # in order: whoever is unsubscribed by a reply gets what came before it
            if not isinstance(item, tuple):
                self.answered(item)
                continue
            routes = self._routes.get(item[0])
            if routes is None:
                continue
            if routes[0].topic == SEQUENCE_TOPIC:  # what they announce came before them, on other topics
                announcements.append((routes, item))
            else:
                self._deliver_segment(routes, item, received_at)
        for routes, item in announcements:
            self._deliver_segment(routes, item, received_at)

    def _deliver_segment(self, routes: Sequence[Route], segment: Segment, received_at: float) -> None:
        """Each route gets messages of its own, since whoever has one may change it."""
        _, frames, foreign = segment
        for route in tuple(routes):
            topic = route.topic
            if frames is not None:
                batch = [
                    Message(topic, payload, NO_HEADERS, None, session, sequence, published * 1e-9, received_at)
                    for _, session, sequence, published, payload in frames
                ]
            else:
                batch = [self.read_foreign(topic, metadata, payload, received_at) for metadata, payload in foreign]
            if self.interceptor is None:
                route.stream.deliver(batch)
            else:
                self.interceptor.deliver(route, batch)

    def eof_received(self) -> bool:
        """The broker closes the connection."""
        return False

    def pause_reading(self) -> None:
        """Leave what arrives in the socket; the broker notices after a while."""
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            if not self._stalled:
                self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.received_at = self.loop.time()
            if not self._stalled:  # else the next turn resumes it
                self.transport.resume_reading()
            if self._stalled or self._held_bytes:
                self._next_turn()

    def fail(self, error: BusError) -> None:
        """Give the connection up for ``error``: what it still holds is not sent."""
        if self._reason is None:
            self._reason = error
        sock = self.socket
        if sock is not None and not self.transport.is_closing():
            with contextlib.suppress(OSError, ValueError):  # else the kernel would send it behind newer messages
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, for whatever reason; what was read is delivered."""
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
        """Deliver what came before the end, as much as one read can have brought; the rest is part of the gap."""
        for _ in range(_LAST_TURNS):
            self._deliver()
            if not (self._more or self._unread):
                return
            self._decode(b"" if self._more else self._unread.pop(0))
            self._deliver()  # which makes room for as many again
        self._deliver()

    async def close(self, within: float) -> None:
        """Write what is left and close; whatever is not gone after ``within`` seconds is cut."""
        if not self.gone.done():
            self._send()
            self.transport.close()
            await asyncio.wait((self.gone,), timeout=within)
            if not self.gone.done():
                self.transport.abort()
                await asyncio.wait((self.gone,), timeout=1.0)
