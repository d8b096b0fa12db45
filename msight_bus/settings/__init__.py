"""Settings: every ``MSIGHT_`` variable, typed, checked before anything is connected, its secrets hidden."""

from __future__ import annotations

from msight_bus.settings.addresses import HostPort, NatsServer
from msight_bus.settings.bus import BusSettings
from msight_bus.settings.kafka import KafkaSettings
from msight_bus.settings.limits import Limits
from msight_bus.settings.nats import NatsSettings
from msight_bus.settings.problems import ConfigWarning, InsecureWarning
from msight_bus.settings.redis import RedisSettings
from msight_bus.settings.tls import TlsSettings
from msight_bus.settings.variables import Variable

__all__ = [
    "BusSettings",
    "ConfigWarning",
    "HostPort",
    "InsecureWarning",
    "KafkaSettings",
    "Limits",
    "NatsServer",
    "NatsSettings",
    "RedisSettings",
    "TlsSettings",
    "Variable",
]
