"""Redis pub/sub: broadcast, best effort."""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.live import LiveAdapter
from msight_bus.adapters.redis.connector import RedisConnector
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings


class RedisAdapter(LiveAdapter):
    """Redis pub/sub (adapters.base.Adapter)."""

    def __init__(self, settings: BusSettings, stamp: Stamp, report: Callable[[BusEvent], None]) -> None:
        super().__init__(settings, RedisConnector(settings, stamp), stamp, report)
