"""`SharedSubscription`: several tasks take messages from one subscription."""

from __future__ import annotations

import asyncio
from collections import deque

from msight_bus.message import Message
from msight_bus.subscription.subscription import Subscription


class SharedSubscription:
    """A subscription shared by several tasks: one idle task waits at the queue, the others in a list.

    A task takes a message with `Subscription.take` and, if `idle` is not empty, calls `wake_one`, because more messages may be
    queued. Without a message, the task awaits `next`.

    Attributes:
        idle: the tasks that wait while another one waits at the queue.
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
            BusError: as `Subscription.__anext__`.
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
            if waiter.cancelled():  # woken or not, another task has to check the queue
                self.wake_one()
        message = self._subscription.take()
        if message is not None:
            self.wake_one()
        return message

    def wake_one(self) -> None:
        """Wake one idle task, which wakes the next one if messages are left."""
        while self.idle and not self._waking:
            waiter = self.idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._waking = True
