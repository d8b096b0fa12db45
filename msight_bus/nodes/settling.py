"""Inputs whose outputs are on their way: each is acknowledged once the broker has accepted all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from msight_bus.errors import BusError, ClosedError
from msight_bus.message import Message

Accepted = asyncio.Future[None]


class Settling:
    """Inputs in the order in which they were handled, so that the next one is handled while these are on their way.

    Bounded, because each one keeps its payload until then: it may have to be handled again.
    """

    def __init__(
        self, *, max_messages: int, max_bytes: int, refused: Callable[[Message, BusError], Awaitable[None]]
    ) -> None:
        """``refused`` is called with an input of which an output was not accepted; it is not acknowledged here then."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._refused = refused
        self._pending: deque[tuple[Message, list[Accepted]]] = deque()
        self._bytes = 0
        self._added = asyncio.Event()
        self._settled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    async def add(self, message: Message, outputs: list[Accepted]) -> None:
        """Acknowledge ``message`` when all ``outputs`` are accepted. Suspends while there are too many."""
        size = len(message.payload)
        while self._pending and (len(self._pending) >= self._max_messages or self._bytes + size > self._max_bytes):
            await self._next_settled()
        self._pending.append((message, outputs))
        self._bytes += size
        self._added.set()

    async def run(self) -> None:
        """Acknowledge what was added, for ever."""
        while True:
            while not self._pending:
                self._added.clear()
                await self._added.wait()
            message, outputs = self._pending[0]
            error = await _outcome(outputs)
            if error is None:
                await message.ack()
            else:
                await self._refused(message, error)
            self._pending.popleft()
            self._bytes -= len(message.payload)
            self._settled.set()

    async def finish(self) -> None:
        """Wait until everything that was added is settled."""
        while self._pending:
            await self._next_settled()

    async def _next_settled(self) -> None:
        self._settled.clear()
        await self._settled.wait()


async def _outcome(outputs: list[Accepted]) -> BusError | None:
    """The first error of ``outputs``, once all are known."""
    first: BusError | None = None
    for output in outputs:
        if not output.done():
            await asyncio.wait((output,))  # awaiting it would cancel it with us
        error = ClosedError("The publish was cancelled.") if output.cancelled() else output.exception()
        if error is not None and first is None:
            first = error if isinstance(error, BusError) else BusError(str(error))
    return first
