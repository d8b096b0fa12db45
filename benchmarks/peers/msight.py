"""MSight Core's pub/sub layer: ``publish``, and ``listen`` in a thread, as its nodes call them.

The layer has no metadata and publishes the payload only. Nodes of MSight Core do more work per message.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import redis

from msight_bus.bench.sides import Tally, Target

os.environ.setdefault("MSIGHT_EDGE_DEVICE_NAME", "benchmark")  # required for importing the package
Topic = SimpleNamespace
"""Replaces the class of the package, which imports libraries of maps, point clouds and videos; the layer uses its name."""

_topics = ModuleType("msight_core.topics")
_topics.Topic = Topic  # type: ignore[attr-defined]
sys.modules.setdefault("msight_core.topics", _topics)

from msight_core.pubsub import KafkaPubSub, NATSPubSub, RedisPubSub  # noqa: E402


def _redis(target: Target) -> Any:
    host, port = target.settings.redis.nodes[0]
    return RedisPubSub(redis.Redis(host=host, port=port))


def _nats(target: Target) -> Any:
    return NATSPubSub({"servers": [f"nats://{server.host}:{server.port}" for server in target.settings.nats.servers]})


def _kafka(target: Target) -> Any:
    group = f"benchmark-{secrets.token_hex(4)}"
    return KafkaPubSub({"servers": [str(server) for server in target.settings.kafka.servers], "group_id": group})


_LAYERS = {"redis": _redis, "nats": _nats, "kafka": _kafka}


class _Layer:
    def __init__(self, backend: str, prefix: int = 0) -> None:
        """``prefix``: bytes of metadata before each payload, which the layer does not parse."""
        self._backend, self._prefix = backend, prefix

    def _connect(self, target: Target) -> None:
        self._topic = Topic(name=target.topic)
        self._layer = _LAYERS[self._backend](target)

    def _disconnect(self) -> None:
        """The layer itself cannot."""
        if self._backend == "redis":
            self._layer.r.close()
        elif self._backend == "nats":
            asyncio.run_coroutine_threadsafe(self._layer.nc.close(), self._layer.loop).result()
            self._layer.loop.call_soon_threadsafe(self._layer.loop.stop)
            self._layer._thread.join()
            self._layer.loop.close()


class ListenSubscriber(_Layer):
    """Receives with ``for data in pubsub.listen()``."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._over = False
        self._connect(target)
        self._layer.subscribe(self._topic)
        self._early: list[bytes] = []
        if self._backend == "redis":
            self._layer.pubsub.get_message(timeout=5.0)
        elif self._backend == "nats":
            asyncio.run_coroutine_threadsafe(self._layer.nc.flush(), self._layer.loop).result()
        else:
            while not self._layer.consumer.assignment():
                if (message := self._layer.consumer.poll(0.05)) is not None:
                    self._early.append(message.value())

    async def receive(self, tally: Tally) -> None:
        """Count each message, in a thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._count, tally)

    def _count(self, tally: Tally) -> None:
        observe, prefix = tally.observe, self._prefix
        tally.received += len(self._early)
        tally.size += sum(map(len, self._early))
        try:
            for payload in self._layer.listen():
                if self._over:
                    return
                tally.received += 1
                tally.size += len(payload) - prefix
                if observe is not None:
                    observe(payload[prefix:] if prefix else payload)
        except AttributeError:  # ends the endless loop over the consumer
            if not self._over:
                raise

    async def close(self) -> None:
        """Wake the thread so that it ends, and disconnect."""
        self._over = True
        if self._backend == "redis":
            self._layer.publish(self._topic, b"over")
        elif self._backend == "nats":
            self._layer.queue.put(b"over")
        else:
            consumer, self._layer.consumer = self._layer.consumer, None
        await asyncio.get_running_loop().shutdown_default_executor()
        if self._backend == "kafka":
            consumer.close()
        self._disconnect()


class PublishPublisher(_Layer):
    """Publishes with the blocking ``pubsub.publish(topic, data)``."""

    async def open(self, target: Target) -> None:
        """Connect."""
        self._connect(target)

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        self._layer.publish(self._topic, payload)

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in order."""
        for _ in range(count):
            self._layer.publish(self._topic, payload)
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait for a round trip on NATS; on other brokers, each message waits for one."""
        if self._backend == "nats":
            asyncio.run_coroutine_threadsafe(self._layer.nc.flush(), self._layer.loop).result()

    async def close(self) -> None:
        """Disconnect."""
        self._disconnect()
