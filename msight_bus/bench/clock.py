"""Wait for a point in time with a kernel timer, if there is one, and a short spin."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from time import perf_counter_ns
from typing import Self

SPIN_NS = 80_000
"""Nanoseconds by which the timer fires early; the clock spins for the rest."""

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = 0o2004000
_ABSOLUTE = 1
_TIMER = struct.Struct("qqqq")


class PreciseClock:
    """Waits for points of ``perf_counter_ns``.

    Timers of event loops have a resolution of 1 ms and fire up to 1 ms late. On Linux a ``timerfd`` wakes the loop within
    microseconds; elsewhere the loop spins.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._due: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._fired)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        if self._due is not None and not self._due.done():
            self._due.set_result(None)

    async def until(self, when: int) -> None:
        """Wait until ``when`` (ns of ``perf_counter_ns``), while the loop runs; return at once if ``when`` is past."""
        early = when - SPIN_NS
        if perf_counter_ns() < early:
            if self._fd < 0:
                while perf_counter_ns() < early:
                    await asyncio.sleep(0)
            else:
                self._due = self._loop.create_future()
                setting = _TIMER.pack(0, 0, early // 1_000_000_000, early % 1_000_000_000)
                self._libc.timerfd_settime(self._fd, _ABSOLUTE, setting, None)
                await self._due
        while perf_counter_ns() < when:
            pass
