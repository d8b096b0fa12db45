"""Work that is out beside a virtual clock's loop: in executors, threads and processes."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any
from weakref import WeakSet

import anyio.to_process

logger = logging.getLogger("msight_bus")

PATIENCE = 10.0
"""Real seconds for which the clock stands for one piece of work. Longer than tests work, and far below a test's timeout:
a thread that waits for what only the clock can bring, or a server that never ends, must not hold up a run for ever."""

_ANYIO_THREADS = "anyio._backends._asyncio"
_EXECUTOR_THREADS = "concurrent.futures.thread"
_HELPER_THREADS = ("asyncio.unix_events", "concurrent.futures.process", "multiprocessing.")
"""Modules whose threads only watch over processes."""


class WorkOut:
    """What a loop's program has handed to others and has not got back.

    - calls of ``run_in_executor``, and so ``asyncio.to_thread`` and ``getaddrinfo``, until their future is done;
    - threads started since the loop was made, while they run; anyio's worker threads, while they work;
    - subprocesses of asyncio, while they run, except idle worker processes of anyio.

    A thread that waits for the loop itself (``asyncio.run_coroutine_threadsafe``, ``anyio.from_thread.run``) is not at
    work. Neither is what has been out for more than `PATIENCE` real seconds; a WARNING says so once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._strangers = WeakSet(threading.enumerate())
        self._jobs: set[asyncio.Future[Any]] = set()
        self._processes: set[asyncio.SubprocessTransport] = set()
        self._calls: Counter[int] = Counter()  # pending calls into the loop, by the identifier of the thread
        self._since: dict[Hashable, float] = {}  # when each piece of work was first seen, by time.monotonic()
        self._given_up: set[Hashable] = set()

    def add_job(self, future: asyncio.Future[Any]) -> None:
        """Count an executor's call until ``future`` is done."""
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

    def is_out(self, waits: bool) -> bool:
        """Whether the clock must stand.

        Args:
            waits: whether the loop is about to wait. If it is not, there is nothing to decide, and this only notices
                which processes are idle between two pieces of work.
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
                    "Still out after %g s of real time: %s. The simulation's clock no longer waits for it.",
                    PATIENCE,
                    work[0] if isinstance(work, tuple) else work,
                )
        return len(self._since) > len(self._given_up)

    def _find(self) -> Iterator[Hashable]:
        """Every piece of work that is out; equal to itself from one call to the next."""
        in_loop = 0  # executors' threads that wait for the loop
        for thread in threading.enumerate():
            if thread in self._strangers or thread is threading.current_thread():
                continue
            calling = thread.ident is not None and thread.ident in self._calls
            home = _home(thread)
            if home == _EXECUTOR_THREADS:
                in_loop += calling
            elif not calling and not home.startswith(_HELPER_THREADS) and not self._is_idle(thread, home):
                # One thread of anyio's does one piece of work after the other.
                yield thread, getattr(thread, "idle_since", None)
        # Which thread does which job is unknown, so the number of those that wait is taken off.
        yield from sorted(self._jobs, key=id)[in_loop:]
        if self._processes:
            self._processes = {transport for transport in self._processes if transport.get_returncode() is None}
            idle = _idle_processes()
            yield from (transport for transport in self._processes if transport.get_pid() not in idle)

    def _is_idle(self, thread: Any, home: str) -> bool:
        """Whether it is a thread of anyio's that waits for work, or of another loop."""
        if home != _ANYIO_THREADS:
            return False
        return thread.loop is not self._loop or thread.stopping or thread in thread.idle_workers


def _home(thread: threading.Thread) -> str:
    """The module of the code that a thread runs."""
    if type(thread) is not threading.Thread:
        return type(thread).__module__
    return getattr(getattr(thread, "_target", None), "__module__", None) or ""


def _idle_processes() -> set[int]:
    """Process identifiers of anyio's idle worker processes on the running loop."""
    idle: Any = getattr(anyio.to_process, "_process_pool_idle_workers", None)
    return {process.pid for process, _ in idle.get(())} if idle is not None else set()
