"""Shared code of the ceilings: a deque with an async iterator, and writes that are coalesced per loop iteration."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Self

from msight_bus.bench.sides import Tally

Item = tuple[bytes, bytes]
"""Payload, and undecoded session, sequence and publish time, which the bus decodes on use too."""

RUN_BELOW = 16 * 1024
"""Payloads below this size arrive in groups, and can be parsed in one C-level loop."""

BURST_BYTES = 128 * 1024


class RawStream(asyncio.Protocol):
    """A queue with synchronous input and an async iterator, with one wake-up per chunk."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self.transport = transport

    def wake(self) -> None:
        """Wake the reader after a chunk was parsed."""
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
    """Writes the frames of one loop iteration with one ``writelines``."""

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
        """Write at the end of this loop iteration; return whether the caller must wait for `drained`."""
        if not self._out:
            self._loop.call_soon(self.flush_out)
        self._out += parts
        for part in parts:
            self._out_bytes += len(part)
        return self._out_bytes >= BURST_BYTES or self._paused

    def flush_out(self) -> None:
        """Write the frames of this loop iteration to the transport."""
        if self._out:
            self.transport.writelines(self._out)
            self._out = []
            self._out_bytes = 0

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The write buffer has space."""
        self._paused = False
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    async def drained(self) -> None:
        """Wait until the write buffer has space."""
        self.flush_out()
        if self._paused:
            self._drained = self._loop.create_future()
            await self._drained
        else:
            await asyncio.sleep(0)
