"""An event loop with a virtual clock: timers take no real time; threads and processes do."""

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
from msight_bus.testing.work import OutsideWork

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EPOCH = 1_700_000_000.0
"""POSIX seconds at which a virtual clock starts; the same in every run."""

_ITERATION = 1e-6
"""Virtual seconds that each iteration of the loop takes, so that code that polls without waiting ends."""

_POLL = 0.005
"""Real seconds between two checks whether a thread is still running, because the end of a thread does not wake the loop."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """asyncio's selector event loop with a virtual clock, which jumps to the next timer when no callback is ready.

    The order of events depends on the program only. While threads or processes work (see `OutsideWork`), the clock stops and the
    loop waits for them in real time, so that their duration fires no timer. Sockets and pipes to other processes are not counted
    as work.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._calling: int | None = None
        self.work = OutsideWork(self)
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the virtual seconds since the loop was created."""
        return self._now

    def wall_time(self) -> float:
        """Return the virtual time in POSIX seconds; callable from any thread, even after the loop has ended."""
        return _EPOCH + self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock by ``seconds``."""
        self._now += seconds

    def run_forever(self) -> None:
        """Run until stopped. Data created meanwhile, in any thread, has timestamps of this clock."""
        with stamp_data_by(self.wall_time):
            super().run_forever()

    # -- work outside the loop

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run ``func(*args)`` in ``executor``; the clock stops until the future is done."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self.work.add_job(future)
        return future

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        """Start a program; the clock stops until the program has ended."""
        transport, protocol = await super().subprocess_exec(*args, **kwargs)
        self.work.add_process(transport)
        return transport, protocol

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:
        """Start a shell command; the clock stops until the command has ended."""
        transport, protocol = await super().subprocess_shell(*args, **kwargs)
        self.work.add_process(transport)
        return transport, protocol

    # -- calls from threads

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call ``callback(*args)`` on the loop. If the callback creates a task, the thread waits for that task."""
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
    """A selector whose timeouts are virtual, except while threads or processes work."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the ready events; without events and work outside the loop, advance the clock by ``timeout``."""
        if timeout is None:
            return super().select(None)
        # Check before polling: a thread that ends in between has woken the loop, which the poll detects.
        stopped = self._loop.work.is_running(timeout > 0)
        ready = super().select(_POLL if stopped else 0)
        if ready:
            self._loop.advance(_ITERATION)
        elif not stopped:
            self._loop.advance(max(timeout, _ITERATION))
        return ready


def _now() -> float:
    return time.time()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock of ``loop`` in POSIX seconds: virtual for a `VirtualClockLoop`, else the system clock."""
    return loop.wall_time if isinstance(loop, VirtualClockLoop) else _now


def wall_clock() -> float:
    """Return the time of the running loop's clock in POSIX seconds; see `clock_of`."""
    return clock_of(asyncio.get_running_loop())()
