"""Tasks that the bus runs for itself, turns in which tasks wait, and cancellation where it would do harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

logger = logging.getLogger("msight_bus")

T = TypeVar("T")

_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
"""Seconds before a task that has failed runs again: at first, and at most."""


class BackgroundTasks:
    """Tasks that run until they return or are stopped. One that raises is logged and runs again, after a growing pause."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        """Run ``run()`` as a task."""
        task = asyncio.create_task(_keep_running(run, name), name=f"msight_bus {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel every task and wait until it has ended; a client that swallows the cancellation is told again."""
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
            logger.exception("The bus's task %r has failed; it runs again in %g s.", name, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


class Gate:
    """Where tasks wait for their turn, in the order in which they came.

    Attributes:
        waiting: how many wait or have their turn.
    """

    __slots__ = ("_lock", "waiting")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.waiting = 0

    @asynccontextmanager
    async def turn(self, within: float) -> AsyncIterator[asyncio.Timeout]:
        """Wait for one's turn, which lasts as long as the block; gives the deadline, which the block may move.

        Raises:
            TimeoutError: those in front, and the block, take longer than ``within`` seconds.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(within) as deadline, self._lock:
                yield deadline
        finally:
            self.waiting -= 1


async def run_shielded(release: Coroutine[Any, Any, None] | asyncio.Task[None]) -> None:
    """Await ``release`` to its end, which must have a deadline; a cancellation meanwhile is raised after it.

    Raises:
        CancelledError: it came while the release went on.
        Exception: what ``release`` raises.
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
            task.exception()  # the cancellation is what counts
        raise cancelled
    task.result()


async def start_with_grace(start: Coroutine[Any, Any, None], within: float = 1.0) -> None:
    """Await ``start``, which leaks when it is cancelled: it then has ``within`` seconds to end by itself.

    Raises:
        CancelledError: it came meanwhile; what ``start`` has opened is the caller's to close.
        Exception: what ``start`` raises.
    """
    task = asyncio.ensure_future(start)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        await run_shielded(_end(task, within))
        raise
    task.result()


async def _end(task: asyncio.Task[None], within: float) -> None:
    await asyncio.wait((task,), timeout=within)
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # the cancellation is what counts


async def reraise_swallowed(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``; a cancellation that it has swallowed is raised behind it, and its result or error is lost.

    The client libraries use ``asyncio.wait_for``, which before Python 3.12 returns a result instead of raising a cancellation
    that comes with it; what they make of such a result may be an error.
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
