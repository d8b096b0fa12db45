"""NATS core: broadcast or queue groups, best effort."""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.live import LiveAdapter
from msight_bus.adapters.nats.connector import NatsConnector
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings


class NatsAdapter(LiveAdapter):
    """NATS core (adapters.base.Adapter)."""

    def __init__(self, settings: BusSettings, stamp: Stamp, report: Callable[[BusEvent], None]) -> None:
        super().__init__(settings, NatsConnector(settings, stamp), stamp, report)
