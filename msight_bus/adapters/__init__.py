"""The one table from a backend's name to its adapter. A client library is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from msight_bus.adapters.base import Adapter, Stamp
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings

_ADAPTERS = {
    "redis": ("msight_bus.adapters.redis", "RedisAdapter"),
    "nats": ("msight_bus.adapters.nats", "NatsAdapter"),
    "kafka": ("msight_bus.adapters.kafka", "KafkaAdapter"),
    "memory": ("msight_bus.adapters.memory", "MemoryAdapter"),
}


def make_adapter(settings: BusSettings, stamp: Stamp, report: Callable[[BusEvent], None]) -> Adapter:
    """The adapter of ``settings.backend``; nothing is connected yet."""
    module, name = _ADAPTERS[settings.backend]
    adapter: Adapter = getattr(import_module(module), name)(settings, stamp, report)
    return adapter
