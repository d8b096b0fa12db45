"""The table of backends. A client library is imported only when its backend is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from msight_bus.backends.base import Backend
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings

_BACKENDS = {
    "redis": ("msight_bus.backends.redis", "RedisBackend"),
    "nats": ("msight_bus.backends.nats", "NatsBackend"),
    "kafka": ("msight_bus.backends.kafka", "KafkaBackend"),
    "memory": ("msight_bus.backends.memory", "MemoryBackend"),
}


def make_backend(settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]) -> Backend:
    """Make the backend that ``settings`` select; nothing is connected yet.

    Args:
        settings: the settings of the bus.
        report: called with each event.
        new_session: returns a random session id.

    Raises:
        BusError: the installed client library lacks a private attribute that the backend uses.
    """
    module, name = _BACKENDS[settings.backend]
    backend: Backend = getattr(import_module(module), name)(settings, report, new_session)
    return backend
