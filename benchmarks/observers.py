"""Sides that measure memory: a stalled subscriber under load, a publisher before a frozen broker, many idle topics."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from contextlib import AsyncExitStack

from aiokafka.protocol.metadata import MetadataRequest

import msight_bus
from benchmarks.many_topics import topic_of
from msight_bus import BusError, QueuePolicy
from msight_bus.backends.kafka.aiokafka_compat import Connection
from msight_bus.bench.figures import Figures
from msight_bus.bench.jobs import Plan
from msight_bus.bench.sides import Target

_OPENING_AT_ONCE = 16


class _Observer:
    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def _connect(self, target: Target) -> msight_bus.Bus:
        return await self._stack.enter_async_context(msight_bus.connect(target.settings))

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()


class StalledSubscriber(_Observer):
    """Subscribes with a default bound and receives nothing while a publisher exceeds the bound many times."""

    def __init__(self, policy: str) -> None:
        """``policy``: a constructor of `QueuePolicy`."""
        super().__init__()
        self._policy: QueuePolicy = getattr(QueuePolicy, policy)()

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        bus = await self._connect(target)
        self._subscription = await self._stack.enter_async_context(bus.subscribe(target.topic, queue=self._policy))

    async def watch(self, plan: Plan) -> Figures:
        """Wait until the publisher has ended."""
        await asyncio.sleep(plan.warm_up + plan.seconds + 0.3)
        stats = self._subscription.stats
        return {
            "bound_bytes": float(self._policy.max_bytes),
            "received": float(stats.received),
            "dropped": float(sum(stats.dropped.values())),
            "queued_peak": float(stats.queued_peak),
        }


class FrozenPublisher(_Observer):
    """Publishes to a frozen broker."""

    async def open(self, target: Target) -> None:
        """Connect, and publish once."""
        bus = await self._connect(target)
        self._publisher = bus.publisher(target.topic)
        await self._stack.enter_async_context(self._publisher)
        await self._publisher.send(bytes(target.size))
        await self._publisher.flush()

    async def watch(self, plan: Plan) -> Figures:
        """Publish as fast as possible until the time has passed, mostly waiting."""
        accepted = 0
        try:
            async with asyncio.timeout(plan.seconds):
                while True:
                    await self._publisher.send(b"%b" % bytes(plan.size))
                    accepted += 1
        except (TimeoutError, BusError):
            return {"accepted": float(accepted), "accepted_bytes": float(accepted * plan.size)}


class IdleTopics(_Observer):
    """Subscribes to many topics on one bus of Kafka while nothing is published, to measure idle cost and metadata."""

    def __init__(self, topics: int) -> None:
        super().__init__()
        self._topics = topics
        self._answers: Counter[int] = Counter()
        self._answered_bytes: Counter[int] = Counter()

    async def open(self, target: Target) -> None:
        """Connect and subscribe to all topics, in groups."""
        self._count_answers()
        begun = time.perf_counter()
        bus = await self._connect(target)
        some = asyncio.Semaphore(_OPENING_AT_ONCE)

        async def subscribe(number: int) -> None:
            async with some:
                await self._stack.enter_async_context(bus.subscribe(topic_of(target.topic, number)))

        await asyncio.gather(*(subscribe(number) for number in range(self._topics)))
        self._open_seconds = time.perf_counter() - begun

    async def watch(self, plan: Plan) -> Figures:
        """Wait while nothing is published."""
        self._answers.clear()
        self._answered_bytes.clear()
        await asyncio.sleep(plan.seconds)
        metadata = MetadataRequest.API_KEY
        return {
            "topics": float(self._topics),
            "open_seconds": self._open_seconds,
            "connections": float(_connections()),
            "requests_rate": self._answers.total() / plan.seconds,
            "metadata_rate": self._answers[metadata] / plan.seconds,
            "metadata_bytes_rate": self._answered_bytes[metadata] / plan.seconds,
        }

    def _count_answers(self) -> None:
        """Measure in this process, which does nothing else."""
        take, answers, answered_bytes = Connection.take, self._answers, self._answered_bytes

        def counted(connection: Connection, frame: bytes | bytearray) -> None:
            api = connection._requests[0][1].API_KEY
            answers[api] += 1
            answered_bytes[api] += len(frame)
            take(connection, frame)

        Connection.take = counted  # type: ignore[method-assign]


def _connections() -> int:
    return sum(isinstance(one, Connection) and one.connected() for one in gc.get_objects())
