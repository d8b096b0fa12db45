"""nats-py: ``async for`` and ``publish``, with the bus's ``msight`` header."""

from __future__ import annotations

import time

import nats

from benchmarks.ceilings.nats import SESSION
from msight_bus.bench.sides import Tally, Target

_LIMIT_MESSAGES = 1_000_000
_LIMIT_BYTES = 512 * 1024 * 1024


async def connect(target: Target) -> nats.NATS:
    """Create a client with its defaults."""
    server = target.settings.nats.servers[0]
    return await nats.connect(f"nats://{server.host}:{server.port}")


class IterSubscriber:
    """Receives with ``async for message in subscription.messages``, with limits above the number of messages."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._nats = await connect(target)
        self._subscription = await self._nats.subscribe(
            target.topic, pending_msgs_limit=_LIMIT_MESSAGES, pending_bytes_limit=_LIMIT_BYTES
        )
        await self._nats.flush()

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe = tally.observe
        async for message in self._subscription.messages:
            tally.received += 1
            tally.size += len(message.data)
            if observe is not None:
                observe(message.data)

    async def close(self) -> None:
        """Disconnect."""
        await self._nats.close()


class HeaderPublisher:
    """Publishes with ``await client.publish(topic, payload, headers=...)``."""

    async def open(self, target: Target) -> None:
        """Connect."""
        self._nats = await connect(target)
        self._topic = target.topic
        self._sequence = 0

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        self._sequence += 1
        meta = f"{SESSION:016x}{self._sequence:016x}{time.time_ns():016x}"
        await self._nats.publish(self._topic, payload, headers={"msight": meta})

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in order."""
        for _ in range(count):
            await self.send(payload)

    async def flush(self) -> None:
        """Wait for a round trip."""
        await self._nats.flush(timeout=30)

    async def close(self) -> None:
        """Disconnect."""
        await self._nats.close()
