"""Detect work outside the event loop, in executors, threads and processes, during which the virtual clock must not advance."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any
from weakref import WeakSet

logger = logging.getLogger("msight_bus")

PATIENCE = 10.0
"""Real seconds for which the clock stops for one piece of work. A thread that waits for the virtual clock, or a process that
never ends, must not stop the clock for ever."""

_ANYIO_THREADS = "anyio._backends._asyncio"
_OFF_LOOP_THREADS = "msight_bus.executors"
_EXECUTOR_THREADS = ("concurrent.futures.thread", _OFF_LOOP_THREADS)
_HELPER_THREADS = ("asyncio.unix_events", "concurrent.futures.process", "multiprocessing.")
"""Modules whose threads only manage processes."""


class OutsideWork:
    """Unfinished work that the program of an event loop has started in threads and processes.

    - calls of ``run_in_executor``, and so ``asyncio.to_thread`` and ``getaddrinfo``, until their future is done;
    - threads started since the loop was made, while they run; anyio's worker threads, while they work;
    - subprocesses of asyncio, while they run, except idle worker processes of anyio.

    Not counted: a thread that waits for the loop itself (``asyncio.run_coroutine_threadsafe``, ``anyio.from_thread.run``), and
    work that has not ended after `PATIENCE` real seconds, which is logged once as a WARNING.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._earlier_threads = WeakSet(threading.enumerate())
        self._jobs: set[asyncio.Future[Any]] = set()
        self._processes: set[asyncio.SubprocessTransport] = set()
        self._calls: Counter[int] = Counter()  # pending calls into the loop, by the identifier of the thread
        self._since: dict[Hashable, float] = {}  # when each piece of work was first seen, by time.monotonic()
        self._given_up: set[Hashable] = set()

    def add_job(self, future: asyncio.Future[Any]) -> None:
        """Count a call in an executor until ``future`` is done."""
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)

    def add_process(self, transport: asyncio.SubprocessTransport) -> None:
        """Count a subprocess until it has ended."""
        self._processes.add(transport)

    def add_call(self, caller: int, task: asyncio.Task[Any]) -> None:
        """Do not count the thread ``caller`` until ``task`` is done, because it waits for the task's result."""

        def done(_: object) -> None:
            self._calls[caller] -= 1
            if not self._calls[caller]:
                del self._calls[caller]

        self._calls[caller] += 1
        task.add_done_callback(done)

    def is_running(self, waits: bool) -> bool:
        """Return whether the clock must not advance.

        Args:
            waits: whether the loop is about to wait. If not, only the idle processes are recorded.
        """
        if not waits and not self._processes:
            return False
        now = time.monotonic()
        self._since = {work: self._since.get(work, now) for work in self._find()}
        self._given_up &= self._since.keys()
        for work, since in self._since.items():
            if now - since > PATIENCE and work not in self._given_up:
                self._given_up.add(work)
                logger.warning(
                    "Work has not ended after %g s of real time: %s. The simulation's clock no longer waits for this work.",
                    PATIENCE,
                    work[0] if isinstance(work, tuple) else work,
                )
        return len(self._since) > len(self._given_up)

    def _find(self) -> Iterator[Hashable]:
        """Yield each unfinished piece of work as an object that compares equal in the next call."""
        in_loop = 0  # number of executor threads that wait for the loop
        for thread in threading.enumerate():
            module = _module_of(thread)
            if thread is threading.current_thread() or (
                thread in self._earlier_threads and module != _OFF_LOOP_THREADS
            ):
                continue
            calling = thread.ident is not None and thread.ident in self._calls
            if module in _EXECUTOR_THREADS:
                in_loop += calling
            elif not calling and not module.startswith(_HELPER_THREADS) and not self._is_idle(thread, module):
                # A thread of anyio runs several pieces of work, one after the other.
                yield thread, getattr(thread, "idle_since", None)
        # Which thread runs which job is unknown, so the number of waiting threads is subtracted.
        yield from sorted(self._jobs, key=id)[in_loop:]
        if self._processes:
            self._processes = {transport for transport in self._processes if transport.get_returncode() is None}
            idle = _idle_processes()
            yield from (transport for transport in self._processes if transport.get_pid() not in idle)

    def _is_idle(self, thread: Any, module: str) -> bool:
        """Return whether the thread is an idle worker thread of anyio, or one of another loop."""
        if module != _ANYIO_THREADS:
            return False
        return thread.loop is not self._loop or thread.stopping or thread in thread.idle_workers


def _module_of(thread: threading.Thread) -> str:
    """Return the module of the code that a thread runs."""
    if type(thread) is not threading.Thread:
        return type(thread).__module__
    return getattr(getattr(thread, "_target", None), "__module__", None) or ""


def _idle_processes() -> set[int]:
    """Return the process ids of anyio's idle worker processes on the running loop."""
    idle: Any = getattr(sys.modules.get("anyio.to_process"), "_process_pool_idle_workers", None)
    return {process.pid for process, _ in idle.get(())} if idle is not None else set()
