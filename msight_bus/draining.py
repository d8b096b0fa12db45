"""The steps of draining a bus, and the interface of the nodes that are drained with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from msight_bus.backends.base import Backend
from msight_bus.errors import DrainTimeoutError
from msight_bus.subscription import Subscription

CLOSE_WITHIN = 1.0
"""Seconds for closing gracefully after the deadline of a drain, or after a stop without a deadline; then connections are
aborted."""


class Drainable(Protocol):
    """A node that runs on a bus and stops when the bus is drained.

    Attributes:
        name: name of the node, for errors.
        tasks: tasks of the node; a drain called from one of them does not wait for the node.
        stopping: set by the drain to stop the node.
        over: set by the node when it has stopped.
        subscription: the node's input; ``None`` for a source.
    """

    name: str
    tasks: set[asyncio.Task[Any]]
    stopping: asyncio.Event
    over: asyncio.Event
    subscription: Subscription[Any] | None

    @property
    def left(self) -> int:
        """Number of messages that the node has not finished."""


async def drain(
    first: Callable[[], Awaitable[None]],
    subscriptions: Sequence[Subscription],
    drainables: Sequence[Drainable],
    backend: Backend,
    timeout: float,
) -> bool:
    """Stop receiving, wait until the iterators and nodes have ended, flush published messages and commit.

    Args:
        first: awaited before all other steps.
        subscriptions: the subscriptions of the bus.
        drainables: the nodes that run on the bus.
        backend: flushed once the iterators and nodes have ended.
        timeout: deadline of all steps together, in seconds.

    Returns:
        Whether all steps were done. Called from a task that consumes one of the subscriptions, the drain only stops receiving,
        because the queue cannot empty before that task continues.

    Raises:
        DrainTimeoutError: the steps took longer than ``timeout`` seconds; has the number of messages left at each place.
    """
    task = asyncio.current_task()
    inside = task in {subscription.consumer for subscription in subscriptions} or any(
        task in drainable.tasks for drainable in drainables
    )
    try:
        async with asyncio.timeout(timeout):
            await first()
            for drainable in drainables:
                drainable.stopping.set()
            await asyncio.gather(*(subscription.stop_receiving() for subscription in subscriptions))
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
        what = what or "no message, but a consumer did not request the next message, or the broker did not confirm"
        raise DrainTimeoutError(f"Not drained within {timeout:g} s; left: {what}.", left=left) from None
    return True
