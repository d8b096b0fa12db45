"""Subscriptions with a sense of time, as ROS has it: a deadline for the stream, a lifespan for its messages.

They are classes of their own, so that a subscription which asks for neither pays for neither.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

from msight_bus.accounting import SubscriptionStats
from msight_bus.errors import BusError
from msight_bus.events import DeadlineMissed
from msight_bus.message import Message
from msight_bus.subscription import Subscription

logger = logging.getLogger("msight_bus")

TOO_OLD = "too old"


def check_seconds(name: str, value: object) -> None:
    """Refuse what is neither ``None`` nor a number of seconds above 0.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is a number of seconds above 0, or None, not {value!r}.")


class DeadlineSubscription(Subscription):
    """Says when nothing has come for ``deadline`` seconds, once until something comes again."""

    def __init__(self, *arguments: Any, deadline: float | None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._deadline = deadline
        self._missed = 0
        self._arrived_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._watching = False

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._deadline is not None:
            self._watching = True
            self._arrived_at = asyncio.get_running_loop().time()
            self._watch_for(self._deadline)
        return self

    def deliver(self, batch: list[Message]) -> None:
        """Queue the messages of one chunk."""
        if self._watching and batch:
            self._arrived_at = asyncio.get_running_loop().time()
            if self._watch is None:
                logger.info("Messages come again on %s.", self.topic)
                self._watch_for(self._deadline)
        super().deliver(batch)

    def _watch_for(self, seconds: float | None) -> None:
        if seconds is not None:
            self._watch = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        assert self._deadline is not None
        self._watch = None
        now = asyncio.get_running_loop().time()
        if self._channel.full:  # the consumer holds the stream up, so it is not the stream that is quiet
            self._arrived_at = now
        left = self._arrived_at + self._deadline - now
        if left > 0:
            self._watch_for(left)
            return
        self._missed += 1
        logger.warning("No message has come on %s for %g s.", self.topic, self._deadline)
        self._report(DeadlineMissed(self.topic, self._deadline))

    def _stop_watching(self) -> None:
        self._watching = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def end_intake(self) -> None:
        """Nothing more comes in, and nothing more is expected."""
        self._stop_watching()
        await super().end_intake()

    async def close(self) -> None:
        """Unsubscribe, and expect nothing more."""
        self._stop_watching()
        await super().close()

    def fail(self, error: BusError) -> None:
        """The feed is broken for good."""
        self._stop_watching()
        super().fail(error)

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of the counters."""
        return replace(super().stats, deadlines_missed=self._missed)


class LifespanSubscription(DeadlineSubscription):
    """Hands out nothing older than ``lifespan`` seconds; what is older is dropped, counted, and counts as done."""

    def __init__(
        self, *arguments: Any, lifespan: float, clock: Callable[[], float] = time.time, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._lifespan = lifespan
        self._clock = clock

    async def __anext__(self) -> Message:
        while True:
            message = await super().__anext__()
            if self._fresh([message]):
                return message

    async def next_batch(self, max_messages: int, within: float) -> list[Message]:
        """The next list; asking for it marks the one before as done."""
        while True:
            batch = self._fresh(await super().next_batch(max_messages, within))
            if batch:
                return batch

    def _fresh(self, batch: list[Message]) -> list[Message]:
        """What of ``batch`` is young enough; the rest is dropped."""
        born = self._clock() - self._lifespan
        # Time in this queue is known whatever the publisher's clock says.
        old = [m for m in batch if m.received_at < born or (m.published_at is not None and m.published_at < born)]
        if not old:
            return batch
        self._channel.drop_taken(old, TOO_OLD)
        gone = {id(message) for message in old}
        self._in_hand = [message for message in self._in_hand if id(message) not in gone]
        return [message for message in batch if id(message) not in gone]
