"""An event loop on which waiting takes no time: when nothing is ready, the clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
import time

_EPOCH = 1_700_000_000.0
"""POSIX seconds at which a virtual clock starts; the same in every run."""


_TURN = 1e-6
"""Seconds that every turn of the loop takes: whoever polls without waiting, or waits for what rounding left, comes to an end."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that all but stands while something is ready and else jumps to the next timer.

    The order of what happens depends on nothing but the program. Threads, sockets and processes still take real time,
    which this clock does not know: it is made for code that stays on the loop.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let ``seconds`` pass at once."""
        self._now += seconds


class _Selector(selectors.DefaultSelector):
    """Waits in virtual time, except for what only another thread or the network can end."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; if nothing is, ``timeout`` has passed."""
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        self._loop.jump(_TURN if ready else max(timeout, _TURN))
        return ready


def wall_clock() -> float:
    """POSIX seconds: virtual ones on a `VirtualClockLoop`, else the machine's."""
    loop = asyncio.get_running_loop()
    return _EPOCH + loop.time() if isinstance(loop, VirtualClockLoop) else time.time()
