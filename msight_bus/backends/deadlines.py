"""Deadlines for answers of a broker that count only time in which the event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_SLICES = 10

_BLOCKED = 0.01
"""Minimum seconds by which a timer is late if code blocked the event loop; timers are late by less at any time."""


class _Slices:
    def __init__(self, seconds: float, timeout: asyncio.Timeout) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._part = max(0.0, seconds) / _SLICES
        self._left = _SLICES
        self._begin()

    def _begin(self) -> None:
        self._due = self._loop.time() + self._part
        self.timer = self._loop.call_at(self._due, self._passed)

    def _passed(self) -> None:
        held = self._loop.time() - self._due > max(self._part, _BLOCKED)
        self._left -= 1
        if self._left <= 0 and not held:
            self._timeout.reschedule(self._loop.time())
        else:
            self._begin()


@asynccontextmanager
async def loop_timeout(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that does not count time in which code blocks the event loop.

    While the event loop is blocked, a received answer stays in the socket. Therefore the deadline is divided into slices, and a
    slice in which the event loop was blocked counts as one slice, whatever its duration.

    Args:
        seconds: time in which the event loop runs.

    Raises:
        TimeoutError: the event loop has run for ``seconds`` in this context.
    """
    async with asyncio.timeout(None) as timeout:
        slices = _Slices(seconds, timeout)
        try:
            yield
        finally:
            slices.timer.cancel()
