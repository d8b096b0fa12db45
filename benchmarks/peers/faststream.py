"""FastStream: a handler behind ``@broker.subscriber``, and ``broker.publish``."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.ceilings.kafka import servers
from msight_bus.bench.sides import Tally, Target

_YIELD_EVERY = 64


def _broker(backend: str, target: Target) -> Any:
    """Create the framework's broker object, without logging."""
    if backend == "redis":
        from faststream.redis import RedisBroker  # noqa: PLC0415 - an extra for each backend

        host, port = target.settings.redis.nodes[0]
        return RedisBroker(f"redis://{host}:{port}", logger=None)
    if backend == "nats":
        from faststream.nats import NatsBroker  # noqa: PLC0415

        server = target.settings.nats.servers[0]
        return NatsBroker(f"nats://{server.host}:{server.port}", logger=None)
    from faststream.kafka import KafkaBroker  # noqa: PLC0415

    return KafkaBroker(servers(target), logger=None, max_batch_size=max(16384, target.size + 1024))


class HandlerSubscriber:
    """Receives with a handler of ``bytes``."""

    def __init__(self, backend: str, prefix: int = 0) -> None:
        """``prefix``: bytes of metadata before each payload, which the framework does not parse."""
        self._backend, self._prefix = backend, prefix
        self._tally: Tally | None = None
        self._ready = asyncio.Event()

    async def open(self, target: Target) -> None:
        """Connect and subscribe."""
        self._broker = _broker(self._backend, target)
        options: dict[str, Any] = {}
        if self._backend == "kafka":
            options["auto_offset_reset"] = "earliest" if target.from_start else "latest"
        prefix = self._prefix

        @self._broker.subscriber(target.topic, **options)  # type: ignore[untyped-decorator]
        async def handle(body: bytes) -> None:
            await self._ready.wait()
            tally = self._tally
            if tally is None:
                return
            tally.received += 1
            tally.size += len(body) - prefix
            if tally.observe is not None:
                tally.observe(body[prefix:] if prefix else body)
            if not tally.received % _YIELD_EVERY:
                await asyncio.sleep(
                    0
                )  # the handler does not suspend while messages are available, so yield to the harness

        await self._broker.start()
        await asyncio.sleep(
            0.5 if self._backend == "kafka" else 0.1
        )  # the framework does not report when it has subscribed

    async def receive(self, tally: Tally) -> None:
        """Count in the handler until cancelled."""
        self._tally = tally
        self._ready.set()
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Disconnect."""
        await self._broker.stop()


class BrokerPublisher:
    """Publishes with ``await broker.publish(...)``."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    async def open(self, target: Target) -> None:
        """Connect."""
        self._topic = target.topic
        self._broker = _broker(self._backend, target)
        await self._broker.start()

    async def send(self, payload: bytes) -> None:
        """Send one message, without waiting for the acknowledgement if that is an option."""
        if self._backend == "kafka":
            await self._broker.publish(payload, self._topic, no_confirm=True)
        else:
            await self._broker.publish(payload, self._topic)

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the messages in order."""
        for _ in range(count):
            await self.send(payload)

    async def flush(self) -> None:
        """Do nothing: the framework has no flush."""

    async def close(self) -> None:
        """Disconnect."""
        await self._broker.stop()
