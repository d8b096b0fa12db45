"""What the raw protocols share: a deque behind an async iterator, and writes that leave once a tick."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Self

from msight_bus.bench.sides import Tally

Item = tuple[bytes, bytes]
"""Payload, and session, sequence and publish time as they came: who asks for them decodes them, as in the bus."""

RUN_BELOW = 16 * 1024
"""Payloads under this size come many a chunk, and may be taken by one C-level loop."""

BURST_BYTES = 128 * 1024


class RawStream(asyncio.Protocol):
    """Items go in synchronously and come out of an async iterator, one wake-up a chunk."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self.transport = transport

    def wake(self) -> None:
        """A chunk was parsed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        items = self.items
        while not items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return items.popleft()

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe = tally.observe
        async for payload, _meta in self:
            tally.received += 1
            tally.size += len(payload)
            if observe is not None:
                observe(payload)


class RawWriter(asyncio.Protocol):
    """Frames of one tick leave in one ``writelines``."""

    def __init__(self) -> None:
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self.answered: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self.transport = transport
        self._loop = asyncio.get_running_loop()

    def write(self, *parts: bytes) -> bool:
        """Write with the others of this tick; tells whether the caller should wait for `drained`."""
        if not self._out:
            self._loop.call_soon(self.flush_out)
        self._out += parts
        for part in parts:
            self._out_bytes += len(part)
        return self._out_bytes >= BURST_BYTES or self._paused

    def flush_out(self) -> None:
        """Hand over what this tick has written."""
        if self._out:
            self.transport.writelines(self._out)
            self._out = []
            self._out_bytes = 0

    def pause_writing(self) -> None:
        """The transport is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport has room."""
        self._paused = False
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    async def drained(self) -> None:
        """Until the transport has room."""
        self.flush_out()
        if self._paused:
            self._drained = self._loop.create_future()
            await self._drained
        else:
            await asyncio.sleep(0)
