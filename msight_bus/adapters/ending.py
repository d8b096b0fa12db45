"""Cancellation where it would do harm: in the middle of releasing something, and inside a client that swallows it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(release: Coroutine[Any, Any, None]) -> None:
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


async def begin(start: Coroutine[Any, Any, None], within: float = 1.0) -> None:
    """Await ``start``, which leaks when it is cancelled: it then has ``within`` seconds to end by itself.

    Raises:
        CancelledError: it came meanwhile; what ``start`` has opened is the caller's to close.
        Exception: what ``start`` raises.
    """
    task = asyncio.ensure_future(start)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        await finish(_end(task, within))
        raise
    task.result()


async def _end(task: asyncio.Task[None], within: float) -> None:
    await asyncio.wait((task,), timeout=within)
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # the cancellation is what counts


async def heeding(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``; a cancellation that it has swallowed is raised behind it, and its result is lost.

    The client libraries use ``asyncio.wait_for``, which before Python 3.12 returns a result instead of raising a cancellation
    that comes with it.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    result = await work
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
