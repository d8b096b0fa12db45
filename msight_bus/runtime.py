"""Running a program on the fastest event loop there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

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
