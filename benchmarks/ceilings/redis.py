"""Redis: RESP2 by hiredis and `struct`, the bus's 32-byte prefix."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

import hiredis

from benchmarks.ceilings.stream import RawStream, RawWriter
from msight_bus.bench.sides import Tally, Target

PREFIX = struct.Struct(">4sIQQQ")
MAGIC = b"\xc1MB\x01"
SESSION = 0x1234_5678_9ABC_DEF0
_FRAMED = MAGIC + bytes(4)
_JOIN_BELOW = 16 * 1024


def head(topic: str) -> bytes:
    """Return a PUBLISH command up to the payload's size."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(topic), topic.encode())


async def connect(protocol: Any, target: Target) -> Any:
    """Open a connection with ``protocol``."""
    host, port = target.settings.redis.nodes[0]
    _, made = await asyncio.get_running_loop().create_connection(lambda: protocol, host, port)
    return made


class _Subscription(RawStream):
    """Parses each reply with hiredis."""

    def __init__(self, topic: bytes) -> None:
        super().__init__()
        self._reader = hiredis.Reader()
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        reader, append = self._reader, self.items.append
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            if reply[0] == b"message":
                body = reply[2]
                if not body.startswith(_FRAMED):
                    raise ValueError("a message without the prefix of the bus")
                append((body[32:], body[8:32]))
            else:
                self.confirmed.set_result(None)
        self.wake()


class _RunSubscription(_Subscription):
    """Reads a message's size, and parses following messages of the same size in one C-level loop."""

    def __init__(self, topic: bytes) -> None:
        super().__init__(topic)
        self._start = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$" % (len(topic), topic)
        self._head = b""
        self._frame = struct.Struct("")
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if not self.confirmed.done():
            super().data_received(data)
            return
        data = self._rest + data
        append, position, end = self.items.append, 0, len(data)
        while self._learn(data, position):
            head, size = self._head, self._frame.size
            whole = (end - position) // size * size
            if not whole:
                break
            for first, framed, meta, payload in self._frame.iter_unpack(memoryview(data)[position : position + whole]):
                if first != head:
                    break
                if framed != _FRAMED:
                    raise ValueError("a message without the prefix of the bus")
                append((payload, meta))
                position += size
        self._rest = data[position:]
        self.wake()

    def _learn(self, data: bytes, position: int) -> bool:
        """Read the size of the message at ``position``; return whether its first lines have arrived."""
        if self._head and data.startswith(self._head, position):
            return True
        if not data.startswith(self._start[: len(data) - position], position):
            raise ValueError("not a pub/sub message")
        end_of_line = data.find(b"\r\n", position + len(self._start))
        if end_of_line < 0:
            return False
        self._head = data[position : end_of_line + 2]
        size = int(data[position + len(self._start) : end_of_line])
        self._frame = struct.Struct(f">{len(self._head)}s8s24s{size - 32}s2x")
        return True


class RawSubscriber:
    """The ceiling: a protocol with a deque and an async iterator.

    Each message is parsed by itself, because the smallest correct code accepts any size. With ``runs``, the ceiling has the
    C-level loop of the bus over messages of one size. In both cases a size is known only after it was read.
    """

    def __init__(self, *, runs: bool = False) -> None:
        """``runs``: whether to parse consecutive messages of one size together."""
        self._kind = _RunSubscription if runs else _Subscription

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        topic = target.topic.encode()
        self._stream = await connect(self._kind(topic), target)
        self._stream.transport.write(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(topic), topic))
        await self._stream.confirmed

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        await self._stream.receive(tally)

    async def close(self) -> None:
        """Disconnect."""
        self._stream.transport.abort()


class _Writer(RawWriter):
    def __init__(self) -> None:
        super().__init__()
        self._reader = hiredis.Reader()
        self.unanswered = 0

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        n = 0
        while (reply := reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            n += 1
        self.unanswered -= n
        if not self.unanswered and self.answered is not None:
            self.answered.set_result(None)
            self.answered = None


class RawPublisher:
    """Publishes with coalesced PUBLISH commands and counts the replies."""

    async def open(self, target: Target) -> None:
        """Connect."""
        self._head = head(target.topic)
        self._sequence = 0
        self._writer: _Writer = await connect(_Writer(), target)

    def publish(self, payload: bytes) -> bool:
        """Write one message; return whether to wait."""
        self._sequence += 1
        size = 32 + len(payload)
        prefix = PREFIX.pack(MAGIC, 0, SESSION, self._sequence, time.time_ns())
        self._writer.unanswered += 1
        if size < _JOIN_BELOW:
            return self._writer.write(b"%b%d\r\n%b%b\r\n" % (self._head, size, prefix, payload))
        return self._writer.write(b"%b%d\r\n%b" % (self._head, size, prefix), payload, b"\r\n")

    async def send(self, payload: bytes) -> None:
        """Send one message at once."""
        self.publish(payload)
        self._writer.flush_out()

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in order."""
        publish, drained = self.publish, self._writer.drained
        for _ in range(count):
            if publish(payload):
                await drained()

    async def flush(self) -> None:
        """Wait for the reply to each message."""
        self._writer.flush_out()
        if self._writer.unanswered:
            self._writer.answered = asyncio.get_running_loop().create_future()
            await self._writer.answered

    async def close(self) -> None:
        """Disconnect."""
        self._writer.transport.abort()
