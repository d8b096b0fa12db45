"""NATS: HPUB and HMSG with the bus's ``msight`` header."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

from benchmarks.ceilings.stream import RUN_BELOW, RawStream, RawWriter
from msight_bus.bench.sides import Tally, Target

SESSION = 0x1234_5678_9ABC_DEF0
CONNECT = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"lang":"raw","version":"0","protocol":1}\r\nPING\r\n'
)
NAME = b"NATS/1.0\r\nmsight: "
HEADER_BYTES = len(NAME) + 48 + 4
_FIRST, _END = len(NAME), len(NAME) + 48
_JOIN_BELOW = 16 * 1024


async def connect(protocol: Any, target: Target) -> Any:
    """Open a connection with ``protocol``."""
    server = target.settings.nats.servers[0]
    _, made = await asyncio.get_running_loop().create_connection(lambda: protocol, server.host, server.port)
    made.confirmed = asyncio.get_running_loop().create_future()
    made.transport.write(CONNECT)
    await made.confirmed
    return made


class _Subscription(RawStream):
    confirmed: asyncio.Future[None]

    def __init__(self, *, runs: bool) -> None:
        super().__init__()
        self._runs = runs
        self._line = b""
        self._sizes = 0, 0
        self._head = b""
        self._frame: struct.Struct | None = None
        self._rest: list[bytes] = []
        self._held = 0
        self._needed = 0

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return
            data = b"".join(self._rest)
            self._rest = []
        end, find, append = len(data), data.find, self.items.append
        position = self._take_run(data)
        self._needed = 0
        while position < end:
            eol = find(b"\r\n", position)
            if eol < 0:
                break
            line = data[position:eol]
            if data[position] == 72:
                if line != self._line:
                    self._learn(line)
                start = eol + 2
                header, total = self._sizes
                stop = start + total
                if stop + 2 > end:
                    self._needed = stop + 2 - position
                    break
                append((data[start + header : stop], data[start + _FIRST : start + _END]))
                position = stop + 2
            else:
                if line == b"PONG":
                    if not self.confirmed.done():
                        self.confirmed.set_result(None)
                elif line == b"PING":
                    self.transport.write(b"PONG\r\n")
                elif not line.startswith(b"INFO"):
                    raise ValueError(line)
                position = eol + 2
        if position < end:
            self._rest = [data[position:]]
            self._held = end - position
        self.wake()

    def _learn(self, line: bytes) -> None:
        """Parse HMSG subject sid header-bytes total-bytes; the next message usually has the same line."""
        words = line.split()
        header, total = int(words[-2]), int(words[-1])
        self._line, self._sizes = line, (header, total)
        self._head = line + b"\r\n" + NAME
        size = total - header
        alike = self._runs and header == HEADER_BYTES and size < RUN_BELOW
        self._frame = struct.Struct(f">{len(self._head)}s48s4x{size}s2x") if alike else None

    def _take_run(self, data: bytes) -> int:
        """Parse messages with the line of the last one; return the offset of the first other data."""
        if self._frame is None:
            return 0
        append, head, size = self.items.append, self._head, self._frame.size
        position = 0
        for first, meta, payload in self._frame.iter_unpack(memoryview(data)[: len(data) // size * size]):
            if first != head:
                break
            append((payload, meta))
            position += size
        return position


class RawSubscriber:
    """The ceiling: a protocol with a deque and an async iterator, as for Redis.

    Each message is parsed by itself; with ``runs``, messages with the line of the last one are parsed in one C-level loop, as in
    the bus.
    """

    def __init__(self, *, runs: bool = False) -> None:
        """``runs``: whether to parse consecutive messages of one size together."""
        self._runs = runs

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._stream: _Subscription = await connect(_Subscription(runs=self._runs), target)
        self._stream.confirmed = asyncio.get_running_loop().create_future()
        self._stream.transport.write(b"SUB %b 1\r\nPING\r\n" % target.topic.encode())
        await self._stream.confirmed

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        await self._stream.receive(tally)

    async def close(self) -> None:
        """Disconnect."""
        self._stream.transport.abort()


class _Writer(RawWriter):
    confirmed: asyncio.Future[None]

    def data_received(self, data: bytes) -> None:
        if b"-ERR" in data:
            raise ValueError(data)
        if b"PING\r\n" in data:
            self.transport.write(b"PONG\r\n")
        if b"PONG\r\n" in data and not self.confirmed.done():
            self.confirmed.set_result(None)


class RawPublisher:
    """Publishes with coalesced HPUB commands."""

    async def open(self, target: Target) -> None:
        """Connect."""
        self._head = b"HPUB %b %d " % (target.topic.encode(), HEADER_BYTES)
        self._sequence = 0
        self._writer: _Writer = await connect(_Writer(), target)

    def publish(self, payload: bytes) -> bool:
        """Write one message; return whether to wait."""
        self._sequence += 1
        size = HEADER_BYTES + len(payload)
        start = b"%b%d\r\n%b%016x%016x%016x\r\n\r\n" % (self._head, size, NAME, SESSION, self._sequence, time.time_ns())
        if size < _JOIN_BELOW:
            return self._writer.write(b"%b%b\r\n" % (start, payload))
        return self._writer.write(start, payload, b"\r\n")

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
        """Wait for the PONG to a PING after the messages."""
        self._writer.confirmed = asyncio.get_running_loop().create_future()
        self._writer.write(b"PING\r\n")
        self._writer.flush_out()
        await self._writer.confirmed

    async def close(self) -> None:
        """Disconnect."""
        self._writer.transport.abort()
