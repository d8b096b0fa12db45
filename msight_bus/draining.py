"""The order in which a bus ends, and who takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from msight_bus.backends.base import Backend
from msight_bus.errors import DrainTimeoutError
from msight_bus.subscription import Subscription


class Drainable(Protocol):
    """A node that runs on a bus: it ends in its own order when the bus is drained.

    Attributes:
        name: for people.
        tasks: its own tasks; a drain from inside one of them does not wait for it.
        stopping: set when it shall end.
        over: set by the node when it has ended.
    """

    name: str
    tasks: set[asyncio.Task[Any]]
    stopping: asyncio.Event
    over: asyncio.Event

    @property
    def left(self) -> int:
        """Messages that it has not finished."""


async def drain(
    subscriptions: Sequence[Subscription], drainables: Sequence[Drainable], backend: Backend, timeout: float
) -> bool:
    """Intake stops, iterators hand out what is queued and end, publishes are flushed, commits are made.

    Returns whether all that is done. From inside a task that consumes one of the subscriptions only the intake stops,
    because the queue cannot empty before that task goes on.

    Raises:
        DrainTimeoutError: not within ``timeout`` seconds; it says what is left.
    """
    task = asyncio.current_task()
    inside = task in {subscription.consumer for subscription in subscriptions} or any(
        task in drainable.tasks for drainable in drainables
    )
    try:
        async with asyncio.timeout(timeout):
            for drainable in drainables:
                drainable.stopping.set()
            await asyncio.gather(*(subscription.end_intake() for subscription in subscriptions))
            if inside:
                return False
            await asyncio.gather(*(subscription.finished() for subscription in subscriptions))
            await asyncio.gather(*(drainable.over.wait() for drainable in drainables))
            await backend.flush()
            await asyncio.gather(*(subscription.commit() for subscription in subscriptions))
    except TimeoutError:
        left = {f"subscription {s.topic}": s.left for s in subscriptions if s.left}
        left |= {f"node {drainable.name}": drainable.left for drainable in drainables if drainable.left}
        what = ", ".join(f"{n} on {place}" for place, n in left.items())
        what = what or "no message, but a consumer did not ask for the next one, or the broker did not confirm"
        raise DrainTimeoutError(f"Not drained within {timeout:g} s; left: {what}.", left=left) from None
    return True
