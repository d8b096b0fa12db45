"""Several tasks that take messages from one subscription."""

from __future__ import annotations

import asyncio
from collections import deque

from msight_bus.message import Message
from msight_bus.subscription.subscription import Subscription


class SharedSubscription:
    """Lets tasks wait for the messages of one subscription: one at the queue, the others behind it.

    A task takes with `Subscription.take` and, if `idle` is not empty, calls `wake_one` for what is left; without a message it
    awaits `next`.

    Attributes:
        idle: the tasks that wait behind the one at the queue.
    """

    def __init__(self, subscription: Subscription) -> None:
        self.idle: deque[asyncio.Future[None]] = deque()
        self._subscription = subscription
        self._fetching = False
        self._waking = False
        self._ended = False

    async def next(self) -> Message | None:
        """Wait for a message; ``None`` at the end.

        Raises:
            BusError: as `Subscription`.
        """
        while not self._ended:
            if not self._fetching:
                self._fetching = True
                try:
                    return await anext(self._subscription)
                except StopAsyncIteration:
                    self._ended = True
                finally:
                    self._fetching = False
                    self.wake_one()
            elif (message := await self._next_behind()) is not None:
                return message
        self.wake_one()
        return None

    async def _next_behind(self) -> Message | None:
        waiter = asyncio.get_running_loop().create_future()
        self.idle.append(waiter)
        try:
            await waiter
        finally:
            self._waking = False
            if waiter.cancelled():  # woken or not, the next one has to look
                self.wake_one()
        message = self._subscription.take()
        if message is not None:
            self.wake_one()
        return message

    def wake_one(self) -> None:
        """Wake the next task; one at a time, because it may find nothing left."""
        while self.idle and not self._waking:
            waiter = self.idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._waking = True
