"""The sides of a measurement, a publisher and a subscriber, each in its own process; those of the bus are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol

import msight_bus
from msight_bus.queue_policy import QueuePolicy
from msight_bus.settings import BusSettings

LoopName = Literal["uvloop", "asyncio"]

_QUEUE_MESSAGES = 100_000
"""More than the maximum in flight, so that the queue drops nothing."""


class Tally:
    """Counters of a subscriber: received messages and bytes.

    ``observe`` is called with each payload in a latency run, and is ``None`` in a throughput run.
    """

    __slots__ = ("observe", "received", "size")

    def __init__(self, observe: Callable[[bytes], None] | None) -> None:
        self.received = 0
        self.size = 0
        self.observe = observe


@dataclass(frozen=True, slots=True)
class Target:
    """Broker, topic and size of a run.

    Attributes:
        settings: settings of the broker.
        topic: the topic.
        size: bytes of a payload.
        from_start: whether a subscriber reads a log from its beginning.
        seconds: duration of the publisher.
    """

    settings: BusSettings
    topic: str
    size: int
    from_start: bool = False
    seconds: float = 0.0


class Subscriber(Protocol):
    """A receiving side: ``open`` returns when the broker has confirmed, ``receive`` counts messages until it is cancelled."""

    async def open(self, target: Target) -> None: ...
    async def receive(self, tally: Tally) -> None: ...
    async def close(self) -> None: ...


class Publisher(Protocol):
    """A sending side.

    ``send`` sends one message of a live stream at once, without waiting to fill a batch; ``send_many`` sends as fast as possible,
    and need not wait for confirmations; ``flush`` waits until the broker has confirmed everything.
    """

    async def open(self, target: Target) -> None: ...
    async def send(self, payload: bytes) -> None: ...
    async def send_many(self, payload: bytes, count: int) -> None: ...
    async def flush(self) -> None: ...
    async def close(self) -> None: ...


def load(path: str) -> Any:
    """Import the object that ``"module:name"`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True, slots=True)
class Side:
    """A publisher or subscriber, named so that another process can create it.

    Attributes:
        path: ``"module:class"``.
        options: the class's keyword arguments.
        loop: event loop to run on.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loop: LoopName = "uvloop"

    def make(self) -> Any:
        """Import the class and create an instance."""
        return load(self.path)(**self.options)


class BusSubscriber:
    """Receives with ``async for message in subscription``."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._stack = AsyncExitStack()
        bus = await self._stack.enter_async_context(msight_bus.connect(target.settings))
        persistent = bus.capabilities.persistence
        queue = QueuePolicy.block(10_000) if persistent else QueuePolicy.drop_oldest(_QUEUE_MESSAGES)
        start: Literal["earliest", "latest"] = "earliest" if target.from_start else "latest"
        subscription = bus.subscribe(target.topic, queue=queue, start=start)
        self._subscription = await self._stack.enter_async_context(subscription)

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe = tally.observe
        async for message in self._subscription:
            tally.received += 1
            tally.size += len(message.payload)
            if observe is not None:
                observe(message.payload)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()


class BusPublisher:
    """Sends with ``await publisher.send(payload)``."""

    async def open(self, target: Target) -> None:
        """Connect."""
        self._stack = AsyncExitStack()
        bus = await self._stack.enter_async_context(msight_bus.connect(target.settings))
        self._publisher = await self._stack.enter_async_context(bus.publisher(target.topic))

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        await self._publisher.send(payload)

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send one after the other."""
        send = self._publisher.send
        for _ in range(count):
            await send(payload)

    async def flush(self) -> None:
        """Wait for a round trip."""
        await self._publisher.flush()

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()
