"""Background tasks, a first-come-first-served gate, and helpers for code that must not be cancelled halfway."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msight_bus.errors import described

logger = logging.getLogger("msight_bus")

T = TypeVar("T")

_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
"""Seconds before a failed task is restarted: the first pause, and the longest."""


class BackgroundTasks:
    """Tasks that run until they return or are stopped. A task that raises is logged and restarted with exponential backoff."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        """Run ``run()`` as a task; ``name`` is for logs. ``run`` is called again after an exception."""
        task = asyncio.create_task(_keep_running(run, name), name=f"msight_bus {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel every task until it has ended: a client library can swallow a cancellation, so it is repeated every second."""
        waiting = self._tasks - {asyncio.current_task()}
        while waiting:
            for task in waiting:
                task.cancel()
            _, waiting = await asyncio.wait(waiting, timeout=1.0)


async def _keep_running(run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    pause = _PAUSE
    while True:
        begun = asyncio.get_running_loop().time()
        try:
            return await run()
        except Exception:
            if asyncio.get_running_loop().time() - begun > _LONGEST_PAUSE:
                pause = _PAUSE
            logger.exception("Task %r failed; restarting in %g s.", name, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


class Gate:
    """A gate that one task passes at a time, first come, first served.

    Attributes:
        waiting: number of tasks that wait for a turn or have one.
    """

    __slots__ = ("_lock", "waiting")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.waiting = 0

    @asynccontextmanager
    async def turn(self, within: float) -> AsyncIterator[asyncio.Timeout]:
        """Wait for a turn, which ends with the block.

        Yields:
            The deadline, which the block may reschedule.

        Raises:
            TimeoutError: waiting and the block together take longer than ``within`` seconds.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(within) as deadline, self._lock:
                yield deadline
        finally:
            self.waiting -= 1


class Alarm:
    """A timer that calls a function once, at a time that can be changed."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._when = math.inf
        self._timer: asyncio.Handle | None = None

    def set(self, when: float | None) -> None:
        """Set the time of the call, in seconds of the event loop's clock; ``None``: never."""
        if self._timer is not None:
            self._timer.cancel()
        self._when = math.inf if when is None else when
        self._timer = None if when is None else asyncio.get_running_loop().call_at(when, self._call)

    def left(self, most: float) -> float:
        """Return the seconds until the call, at most ``most``."""
        return max(0.0, min(most, self._when - asyncio.get_running_loop().time()))


async def run_shielded(release: Coroutine[Any, Any, None] | asyncio.Task[None]) -> None:
    """Await ``release`` to its end even if the caller is cancelled. ``release`` must have a deadline of its own.

    Raises:
        CancelledError: the caller was cancelled; raised when ``release`` has ended.
        Exception: as ``release`` raises.
    """
    task = asyncio.ensure_future(release)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # marks the exception as retrieved: the cancellation is raised
        raise cancelled
    task.result()


async def await_shared(future: asyncio.Future[T]) -> T:
    """Await a future that other tasks await, too: a cancellation of the caller does not cancel it.

    `asyncio.shield` of Python 3.14 logs an ERROR if the future fails after the caller was cancelled.

    Raises:
        CancelledError: the caller was cancelled.
        Exception: as ``future`` raises.
    """
    await asyncio.wait((future,))
    return future.result()


async def reraise_swallowed(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` and raise a cancellation that ``work`` swallowed; the result or error of ``work`` is lost.

    Client libraries use ``asyncio.wait_for``, which before Python 3.12 swallows a cancellation that arrives together with the
    result, and can fail because of that result.

    Raises:
        CancelledError: the caller was cancelled while ``work`` ran.
        Exception: as ``work`` raises.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        result = await work
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def error_of_code(raised: BaseException) -> Exception:
    """Convert what a node's code raised to an `Exception`, which is an error of that node only.

    `SystemExit` and a panic of a Rust extension are not an `Exception`: raised in a task, they would end all other nodes.

    Raises:
        CancelledError: the task was cancelled.
        KeyboardInterrupt, GeneratorExit: as raised.
    """
    if isinstance(raised, Exception):
        return raised
    if isinstance(raised, KeyboardInterrupt | GeneratorExit):
        raise raised
    if isinstance(raised, SystemExit):
        error = RuntimeError(f"The node's code raised {raised!r}; a node ends itself with `self.stop()`.")
    elif not isinstance(raised, asyncio.CancelledError):
        error = RuntimeError(f"The node's code raised {described(raised)}")
    else:
        task = asyncio.current_task()
        if task is None or task.cancelling() > 0:
            raise raised
        error = RuntimeError("The node's code raised CancelledError, but its task was not cancelled.")
    error.__cause__ = raised
    return error
