"""An event loop on a virtual clock: waiting takes no time, work beside the loop takes real time."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from msight_bus.data.clock import stamp_data_by
from msight_bus.testing.work import WorkOut

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EPOCH = 1_700_000_000.0
"""POSIX seconds at which a virtual clock starts; the same in every run."""

_TURN = 1e-6
"""Seconds that every turn of the loop takes: whoever polls without waiting, or waits for what rounding left, comes to an end."""

_POLL = 0.005
"""Real seconds after which the loop looks again whether a thread is still running: its end wakes nobody."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that all but stands while something is ready, and otherwise jumps to the next timer.

    The order of events depends on nothing but the program. While work is out beside the loop (see `WorkOut`) the clock
    stands and the loop waits for it in real time, so that no timer fires because of it. Sockets and pipes that the
    program opens to other processes are not counted as work.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._calling: int | None = None
        self.work = WorkOut(self)
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def wall_time(self) -> float:
        """Virtual POSIX seconds; callable from any thread, and after the loop has ended."""
        return _EPOCH + self._now

    def jump(self, seconds: float) -> None:
        """Let ``seconds`` pass at once."""
        self._now += seconds

    def run_forever(self) -> None:
        """Run until stopped; data made meanwhile, in any thread, is stamped by this clock."""
        with stamp_data_by(self.wall_time):
            super().run_forever()

    # -- what leaves the loop

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run ``func(*args)`` in ``executor``; the clock stands until the result is there or the future is cancelled."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self.work.add_job(future)
        return future

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        """Start a program; the clock stands until it has ended."""
        transport, protocol = await super().subprocess_exec(*args, **kwargs)
        self.work.add_process(transport)
        return transport, protocol

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:
        """Start a shell command; the clock stands until it has ended."""
        transport, protocol = await super().subprocess_shell(*args, **kwargs)
        self.work.add_process(transport)
        return transport, protocol

    # -- what comes back to the loop

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call ``callback(*args)`` on the loop; a task that it creates is a call for which the thread waits."""
        return super().call_soon_threadsafe(
            partial(self._call, threading.get_ident(), callback, *args), context=context
        )

    def _call(self, caller: int, callback: Callable[..., object], *args: Any) -> None:
        self._calling = caller
        try:
            callback(*args)
        finally:
            self._calling = None

    def create_task(self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **keywords: Any) -> asyncio.Task[T]:
        """Schedule a coroutine, as asyncio's loop does."""
        task = super().create_task(coro, **keywords)
        if self._calling is not None:
            self.work.add_call(self._calling, task)
        return task


class _Selector(selectors.DefaultSelector):
    """Waits in virtual time, except for what only another thread, a process or the network can end."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; if nothing is and no work is out, ``timeout`` has passed."""
        if timeout is None:
            return super().select(None)
        # Asked before polling: a thread that ends in between has woken the loop, and polling sees that.
        standing = self._loop.work.is_out(timeout > 0)
        ready = super().select(_POLL if standing else 0)
        if ready:
            self._loop.jump(_TURN)
        elif not standing:
            self._loop.jump(max(timeout, _TURN))
        return ready


def _now() -> float:
    return time.time()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The clock, in POSIX seconds, of what runs on ``loop``: virtual on a `VirtualClockLoop`, else the machine's."""
    return loop.wall_time if isinstance(loop, VirtualClockLoop) else _now


def wall_clock() -> float:
    """POSIX seconds by the running loop's clock (see `clock_of`)."""
    return clock_of(asyncio.get_running_loop())()
