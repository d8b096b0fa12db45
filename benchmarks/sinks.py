"""Receive published messages with little processor time: count the messages without parsing them."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.ceilings import nats, redis
from msight_bus.bench.sides import Tally, Target


class _Counter(asyncio.BufferedProtocol):
    """Counts a byte sequence at the start of each message, also across two reads."""

    def __init__(self) -> None:
        self._buffer = bytearray(256 * 1024)
        self._tail = b""
        self.mark = b""
        self.tally: Tally | None = None
        self.size = 0
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, hint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, n: int) -> None:
        if self.tally is None:
            if not self.confirmed.done():
                self.confirmed.set_result(None)
            return
        mark, keep = self.mark, len(self.mark) - 1
        found = self._buffer.count(mark, 0, n) + (self._tail + self._buffer[: min(keep, n)]).count(mark)
        self._tail = (self._tail + bytes(self._buffer[max(0, n - keep) : n]))[-keep:]
        if found:
            self.tally.received += found
            self.tally.size += found * self.size
        if b"PING\r\n" in self._tail:
            self.transport.write(b"PONG\r\n")


class _Sink:
    async def receive(self, tally: Tally) -> None:
        """Count until cancelled."""
        self._counter.tally = tally
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Disconnect."""
        self._counter.transport.abort()

    async def _begin(self, counter: _Counter, target: Target, mark: bytes, command: bytes) -> None:
        self._counter = counter
        counter.mark, counter.size = mark, target.size
        counter.confirmed = asyncio.get_running_loop().create_future()
        counter.transport.write(command)
        await counter.confirmed


class RedisSink(_Sink):
    """Counts ``message`` replies."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        topic = target.topic.encode()
        command = b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(topic), topic)
        await self._begin(await redis.connect(_Counter(), target), target, b"$7\r\nmessage\r\n", command)


class NatsSink(_Sink):
    """Counts MSG and HMSG lines."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        topic = target.topic.encode()
        counter = await nats.connect(_Counter(), target)
        await self._begin(counter, target, b"MSG %b 1 " % topic, b"SUB %b 1\r\nPING\r\n" % topic)
