"""Running a program on the fastest event loop there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

from msight_bus.off_loop import DaemonThreads

logger = logging.getLogger("msight_bus")

UNWIND_WITHIN = 2.0
"""Seconds for cancelled tasks to release what they hold; code that refuses must not hold up the end."""

_THREADS = 40

T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it exists (not on Windows), else ``None`` for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - it does not exist on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run ``coroutine`` to its end, as `asyncio.run` does, on uvloop where it is available.

    Raises:
        RuntimeError: an event loop is running in this thread; ``coroutine`` is closed.
    """
    if running_loop() is not None:
        name = getattr(coroutine, "__name__", "main")
        coroutine.close()
        raise RuntimeError(f"An event loop is running here already, as in a notebook: `await {name}()` there.")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, ``None`` without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@asynccontextmanager
async def nothing_keeps_the_loop() -> AsyncIterator[None]:
    """Let the loop end soon after the block, whatever was started in it: threads of ``asyncio.to_thread`` that hang, for which it
    would wait, and tasks that ignore their cancellation. The log names these tasks."""
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
                logger.warning("Left running: the task %r, which ignores its cancellation.", task.get_name())
                asyncio._unregister_task(task)
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio.gather does so too
