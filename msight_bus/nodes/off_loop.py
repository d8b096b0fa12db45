"""A way off the event loop for work that keeps a processor busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio.to_process
import anyio.to_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def off_loop(function: Callable[[*Ts], T], *args: *Ts, process: bool = False) -> T:
    """Run ``function(*args)`` beside the event loop: ``boxes = await off_loop(detect, frame)``.

    A coroutine that computes holds up every node of its process; off the loop, the others go on. Choose a thread for code
    that releases the interpreter's lock, as NumPy, OpenCV and most inference engines do, and ``process=True`` for pure
    Python: there ``function`` must be importable, and it, its arguments and its result are pickled.

    At most 40 threads, and as many processes as there are processors, are in use at a time; more calls wait their turn.

    Raises:
        Exception: whatever ``function`` raises. When this call is cancelled, a process is killed; a thread cannot be, so
            it runs to its end and its result is dropped.
    """
    if process:
        return await anyio.to_process.run_sync(function, *args, cancellable=True)
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
