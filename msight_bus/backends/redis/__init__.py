"""The Redis backend: pub/sub, broadcast, best effort."""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.backends.pubsub.backend import PubSubBackend
from msight_bus.backends.redis.connector import RedisConnector
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings


class RedisBackend(PubSubBackend):
    """The Redis backend (backends.base.Backend)."""

    def __init__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> None:
        super().__init__(settings, RedisConnector(settings), report, new_session)
