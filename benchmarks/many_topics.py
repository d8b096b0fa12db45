"""A subscriber of one bus with many topics."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import msight_bus
from msight_bus import QueuePolicy, Subscription
from msight_bus.bench.sides import Tally, Target

_QUEUE_MESSAGES = 100_000


def topic_of(topic: str, number: int) -> str:
    """Return the ``number``-th topic of a run with many topics."""
    return f"{topic}.{number}"


class BusTopicsSubscriber:
    """Subscribes to many topics on one bus, with one task per topic."""

    def __init__(self, topics: int) -> None:
        self._topics = topics
        self._stack = AsyncExitStack()

    async def open(self, target: Target) -> None:
        """Connect and subscribe to all topics."""
        bus = await self._stack.enter_async_context(msight_bus.connect(target.settings))
        policy = QueuePolicy.block if bus.capabilities.persistence else QueuePolicy.drop_oldest
        made = [bus.subscribe(topic_of(target.topic, n), queue=policy(_QUEUE_MESSAGES)) for n in range(self._topics)]
        self._subscriptions = [await self._stack.enter_async_context(subscription) for subscription in made]

    async def receive(self, tally: Tally) -> None:
        """Count the messages of all topics."""
        await asyncio.gather(*(self._consume(subscription, tally) for subscription in self._subscriptions))

    async def _consume(self, subscription: Subscription, tally: Tally) -> None:
        async for message in subscription:
            tally.received += 1
            tally.size += len(message.payload)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()
