"""NATS core: broadcast or queue groups, best effort."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.live import LiveAdapter
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings


class NatsAdapter(LiveAdapter):
    """NATS core (adapters.base.Adapter), over the `Transport` of the module `fast` or `client`."""

    def __init__(self, settings: BusSettings, stamp: Stamp, report: Callable[[BusEvent], None]) -> None:
        transport = import_module(f"{__name__}.{settings.transport}")  # one may fail to import where the other works
        super().__init__(settings, transport.Transport(settings, stamp), stamp, report)
