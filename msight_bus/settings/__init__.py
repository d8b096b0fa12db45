"""Settings: typed ``MSIGHT_`` variables, checked before connecting; secrets are hidden."""

from __future__ import annotations

from msight_bus.settings.addresses import HostPort, NatsServer
from msight_bus.settings.bus import BusSettings
from msight_bus.settings.secret import Secret
from msight_bus.settings.section import ConfigWarning, InsecureWarning, Variable
from msight_bus.settings.variables import KafkaSettings, Limits, NatsSettings, RedisSettings

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
    "Secret",
    "Variable",
]
