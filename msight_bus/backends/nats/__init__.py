"""The NATS backend: core NATS, broadcast or queue groups, best effort."""

from __future__ import annotations

import re
from collections.abc import Callable

from msight_bus.backends.nats.connector import NatsConnector
from msight_bus.backends.pubsub.backend import PubSubBackend
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings

_PART = r"[^\x00-\x20\x7f.*>]+"
_SUBJECT = re.compile(rf"{_PART}(?:\.{_PART})*")


class NatsBackend(PubSubBackend):
    """The NATS backend (backends.base.Backend)."""

    def __init__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> None:
        settings.topic_map.check_for("NATS", _SUBJECT, "without spaces, control characters, wildcards and empty parts")
        super().__init__(settings, NatsConnector(settings), report, new_session)
