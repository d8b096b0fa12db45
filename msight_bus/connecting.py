"""A bus for as long as a block runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msight_bus.adapters.ending import finish, heeding
from msight_bus.bus import Bus
from msight_bus.errors import ConfigError
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings


def _ignore(event: BusEvent) -> None:
    pass


@asynccontextmanager
async def connect(
    settings: BusSettings | None = None,
    *,
    backend: str | None = None,
    on_event: Callable[[BusEvent], None] = _ignore,
) -> AsyncIterator[Bus]:
    """Connect to the broker that the settings choose: ``async with msight_bus.connect() as bus:``.

    Args:
        settings: ``BusSettings()``, read from the environment, if not given.
        backend: overrides ``MSIGHT_PUBSUB_BACKEND``.
        on_event: called with each `BusEvent` (connection lost and back, gaps, refusals), on the loop; it must not block.

    Raises:
        ConfigError: settings are wrong; nothing was connected.
        BusError: the installed redis-py or nats-py lacks a private attribute that the bus uses; nothing was connected.
        ConnectionLostError: the broker cannot be reached within ``connect_timeout``.
        AuthenticationError: the broker refused the credentials or the certificate.
    """
    if settings is not None and backend is not None:
        raise ConfigError("Give connect() either settings or backend, not both.")
    if settings is None:
        settings = BusSettings() if backend is None else BusSettings(backend=backend)
    async with opened(Bus(settings, on_event)) as bus:
        yield bus


@asynccontextmanager
async def opened(bus: Bus) -> AsyncIterator[Bus]:
    """Open ``bus``, and close it at the end."""
    try:
        await heeding(bus._adapter.open())
    except BaseException:
        await finish(bus._adapter.close())
        raise
    bus._state.is_open = True
    try:
        yield bus
    finally:
        await bus.close()
