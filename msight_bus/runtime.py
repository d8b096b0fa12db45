"""Run a program on uvloop or asyncio."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

from msight_bus.executors import DaemonThreads

logger = logging.getLogger("msight_bus")

UNWIND_WITHIN = 2.0
"""Seconds to wait for the end of cancelled tasks; tasks that ignore the cancellation are left."""

_THREADS = 40

T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory where uvloop is installed (not on Windows); ``None`` selects asyncio's."""
    try:
        import uvloop  # noqa: PLC0415 - not available on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run ``coroutine`` to its end and return its result, as `asyncio.run` does, on uvloop where available.

    Raises:
        RuntimeError: an event loop is running in this thread, or a process of `multiprocessing` or `off_loop` imports the
            program, which would run twice; ``coroutine`` is closed.
    """
    # multiprocessing itself refuses to start processes by this attribute.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        coroutine.close()
        raise RuntimeError(
            "A child process imports this program to call one of its functions, and the import began to run the program again. "
            "Run the program under `if __name__ == '__main__':`."
        )
    if running_loop() is not None:
        name = getattr(coroutine, "__name__", "main")
        coroutine.close()
        raise RuntimeError(
            f"An event loop is already running in this thread, as in a notebook; use `await {name}()` instead."
        )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop of this thread; ``None`` if none is running."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@asynccontextmanager
async def bounded_shutdown() -> AsyncIterator[None]:
    """End the event loop soon after the block, without waiting for hanging threads of ``asyncio.to_thread`` or for tasks that
    ignore their cancellation. A WARNING names each such task."""
    asyncio.get_running_loop().set_default_executor(DaemonThreads(_THREADS))
    try:
        yield
    finally:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=UNWIND_WITHIN)
        for task in tasks:
            if not task.done():
                logger.warning("Left running: task %r, which ignores its cancellation.", task.get_name())
                asyncio._unregister_task(task)
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio.gather does so too
