"""Real brokers, each started once per run, and the backends that connect to them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

import msight_bus
from msight_bus import brokers
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings

BACKENDS = ["memory", "redis", "nats", "kafka"]
started: dict[str, brokers.RunningBroker] = {}
_CONFIG = {
    "kafka": [  # a killed member and a rebalance are detected sooner than by default
        "group.min.session.timeout.ms=500",
        *(f"group.consumer.{least}session.timeout.ms=3000" for least in ("min.", "")),
        *(f"group.consumer.{least}heartbeat.interval.ms=500" for least in ("min.", "")),
    ]
}


def start_broker(kind: str, config: Sequence[str] = ()) -> brokers.RunningBroker:
    """Start a broker; skip the test if there is none, fail in CI."""
    try:
        return brokers.start(kind, config=[*_CONFIG.get(kind, ()), *config])  # type: ignore[arg-type]
    except brokers.NoBrokerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no {kind} broker on this machine: {error}")


def running_broker(kind: str) -> brokers.RunningBroker:
    """Return the run's broker of this kind, started on first use."""
    if kind not in started:
        started[kind] = start_broker(kind)
    return started[kind]


@dataclass(frozen=True)
class Backend:
    """One backend of the contract suite."""

    name: str
    env: dict[str, str]

    def settings(self, **variables: str) -> BusSettings:
        """Return settings with the address of the run's broker."""
        return BusSettings(environ={**self.env, "MSIGHT_PUBSUB_BACKEND": self.name, **variables})

    @asynccontextmanager
    async def connect(self, *, events: list[BusEvent] | None = None, **variables: str) -> AsyncIterator[msight_bus.Bus]:
        """Return a connected bus."""
        on_event = events.append if events is not None else lambda _: None
        async with msight_bus.connect(self.settings(**variables), on_event=on_event) as bus:
            yield bus


def make_backend(name: str, broker: brokers.RunningBroker | None = None) -> Backend:
    """Return a backend of ``broker``; default: the run's broker."""
    return Backend(name, {} if name == "memory" else dict((broker or running_broker(name)).env))


def backend_at(kind: str, *ports: int) -> Backend:
    """Return Redis or NATS settings with servers at ``ports`` and a user."""
    if kind == "nats":
        where = {"MSIGHT_NATS_SERVERS": ",".join(f"nats://127.0.0.1:{port}" for port in ports)}
        return Backend(kind, {**where, "MSIGHT_NATS_USERNAME": "cam", "MSIGHT_NATS_PASSWORD": "secret word"})
    prefix = "MSIGHT_REDIS_MESSAGE_BROKER_"
    nodes = ",".join(f"127.0.0.1:{port}" for port in ports)
    where = {f"{prefix}USE_CLUSTER": "true", f"{prefix}CLUSTER_NODES": nodes}
    return Backend(kind, {**where, f"{prefix}USERNAME": "cam", f"{prefix}PASSWORD": "secret word"})
