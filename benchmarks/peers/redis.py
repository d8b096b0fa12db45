"""redis-py: ``PubSub.listen`` and pipelines of 64, with the bus's 32-byte prefix in front of each payload."""

from __future__ import annotations

import time
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from benchmarks.ceilings.redis import MAGIC, PREFIX, SESSION
from msight_bus.bench.sides import Tally, Target

_PIPELINE = 64


def connect(target: Target) -> Redis:
    """Create a client with its defaults."""
    host, port = target.settings.redis.nodes[0]
    return Redis(host=host, port=port)


class ListenSubscriber:
    """Receives with ``async for message in pubsub.listen()``."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._redis = connect(target)
        self._pubsub = self._redis.pubsub()
        await self._pubsub.subscribe(target.topic)
        await self._pubsub.get_message(timeout=5.0)

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe = tally.observe
        async for message in self._pubsub.listen():
            if message["type"] == "message":
                data = message["data"]
                tally.received += 1
                tally.size += len(data) - PREFIX.size
                if observe is not None:
                    observe(data[PREFIX.size :])

    async def close(self) -> None:
        """Disconnect."""
        with suppress(RedisError):  # the receiving task can have been cancelled in the middle of a reply
            await self._pubsub.aclose()
        await self._redis.aclose()


class PipelinePublisher:
    """Publishes with pipelines of 64; a message of a live stream with ``await publish``."""

    async def open(self, target: Target) -> None:
        """Connect."""
        self._redis = connect(target)
        await self._redis.ping()
        self._topic = target.topic
        self._sequence = 0

    def _framed(self, payload: bytes) -> bytes:
        self._sequence += 1
        return PREFIX.pack(MAGIC, 0, SESSION, self._sequence, time.time_ns()) + payload

    async def send(self, payload: bytes) -> None:
        """Send one message at once."""
        await self._redis.publish(self._topic, self._framed(payload))

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in pipelines."""
        while count:
            pipeline = self._redis.pipeline(transaction=False)
            for _ in range(min(_PIPELINE, count)):
                pipeline.publish(self._topic, self._framed(payload))
            await pipeline.execute()
            count -= min(_PIPELINE, count)

    async def flush(self) -> None:
        """Do nothing: each pipeline was answered."""

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose()
