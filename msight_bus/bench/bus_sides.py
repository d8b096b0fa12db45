"""The bus itself, as a candidate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import msight_bus
from msight_bus import Bus, QueuePolicy, Subscription
from msight_bus.bench.candidates import Tally, Target, topic_of

_QUEUE_MESSAGES = 100_000
"""More than ever is on its way, so nothing is dropped: what is measured is speed, not a policy."""


class BusSubscriber:
    """``async for message in subscription``, or its ``batches()``."""

    def __init__(self, batches: int = 0) -> None:
        """``batches``: messages of a list at most; 0 iterates messages."""
        self._batches = batches
        self._stack = AsyncExitStack()

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._bus: Bus = await self._stack.enter_async_context(msight_bus.connect(target.settings))
        kafka = self._bus.backend == "kafka"
        queue = QueuePolicy.block(10_000) if kafka else QueuePolicy.drop_oldest(_QUEUE_MESSAGES)
        start = "earliest" if target.from_start else "latest"
        subscription = self._bus.subscribe(target.topic, queue=queue, start=start)  # type: ignore[arg-type]
        self._subscription = await self._stack.enter_async_context(subscription)

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe = tally.observe
        if self._batches:
            async for batch in self._subscription.batches(self._batches):
                for message in batch:
                    tally.received += 1
                    tally.size += len(message.payload)
                    if observe is not None:
                        observe(message.payload)
            return
        async for message in self._subscription:
            tally.received += 1
            tally.size += len(message.payload)
            if observe is not None:
                observe(message.payload)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()


class BusTopicsSubscriber:
    """Many topics on one bus, each with a consumer task of its own."""

    def __init__(self, topics: int) -> None:
        self._topics = topics
        self._stack = AsyncExitStack()

    async def open(self, target: Target) -> None:
        """Connect and subscribe to all."""
        bus = await self._stack.enter_async_context(msight_bus.connect(target.settings))
        policy = QueuePolicy.block if bus.capabilities.persistence else QueuePolicy.drop_oldest
        made = [bus.subscribe(topic_of(target.topic, n), queue=policy(_QUEUE_MESSAGES)) for n in range(self._topics)]
        self._subscriptions = [await self._stack.enter_async_context(subscription) for subscription in made]

    async def receive(self, tally: Tally) -> None:
        """Count each message, wherever it comes."""
        await asyncio.gather(*(self._consume(subscription, tally) for subscription in self._subscriptions))

    async def _consume(self, subscription: Subscription, tally: Tally) -> None:
        async for message in subscription:
            tally.received += 1
            tally.size += len(message.payload)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()


class BusPublisher:
    """``await publisher.send(...)``, or ``await bus.publish(...)``."""

    def __init__(self, *, stream: bool = True, max_in_flight: int | None = None) -> None:
        """``stream``: through ``bus.publisher()``."""
        self._stream = stream
        self._max_in_flight = max_in_flight
        self._stack = AsyncExitStack()

    async def open(self, target: Target) -> None:
        """Connect."""
        self._topic = target.topic
        self._bus: Bus = await self._stack.enter_async_context(msight_bus.connect(target.settings))
        publisher = self._bus.publisher(target.topic, max_in_flight=self._max_in_flight)
        self._publisher = await self._stack.enter_async_context(publisher)
        self._send: Callable[[bytes], Awaitable[object]] = (
            self._publisher.send if self._stream else partial(self._bus.publish, self._topic)
        )

    async def send(self, payload: bytes) -> None:
        """One message."""
        await self._send(payload)

    async def send_many(self, payload: bytes, count: int) -> None:
        """One after the other."""
        if self._stream:
            send = self._publisher.send
            for _ in range(count):
                await send(payload)
            return
        publish, topic = self._bus.publish, self._topic
        for _ in range(count):
            await publish(topic, payload)

    async def flush(self) -> None:
        """A round trip."""
        await self._publisher.flush()

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()
