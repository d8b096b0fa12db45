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
    """Run ``coroutine`` to its end, as `asyncio.run` does, on uvloop where it is available."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)
