"""Base class of sensor readings, and a reading of uninterpreted bytes."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from msight_bus.data.base import Data
from msight_bus.data.clock import now
from msight_bus.data.frame_id import new_frame_id
from msight_bus.data.tags import DataType

device_names: list[str] = []
"""Configured device names of the open buses of this process; the last one is used."""


def _device_name() -> str | None:
    # Read when a value is created, so that a program can set the variable after this import.
    return device_names[-1] if device_names else os.environ.get("MSIGHT_EDGE_DEVICE_NAME") or None


class SensorData(Data, metaclass=DataType, kw_only=True, tag="msight_core.data.base.SensorData"):
    """A reading of a sensor.

    Attributes:
        sensor_name: name of the sensor.
        capture_timestamp: time of capture, in POSIX seconds.
        creation_timestamp: time of creation of this value, in POSIX seconds.
        frame_id: default: a new identifier; see ``new_frame_id``.
        device_name: name of the device; default: ``BusSettings.edge_device_name`` of the last bus that was opened, or
            ``MSIGHT_EDGE_DEVICE_NAME`` without an open bus.
    """

    sensor_name: str | None = None
    capture_timestamp: float = msgspec.field(default_factory=now)
    creation_timestamp: float = msgspec.field(default_factory=now)
    frame_id: int = msgspec.field(default_factory=new_frame_id)
    device_name: str | None = msgspec.field(default_factory=_device_name)

    @property
    def time(self) -> str:
        """``capture_timestamp`` as local time, ISO 8601."""
        return datetime.fromtimestamp(self.capture_timestamp).isoformat()

    @property
    def capture_time(self) -> str:
        """Alias of ``time``."""
        return self.time

    @property
    def creation_time(self) -> str:
        """``creation_timestamp`` as local time, ISO 8601."""
        return datetime.fromtimestamp(self.creation_timestamp).isoformat()


class BytesData(SensorData, metaclass=DataType, tag="msight_core.data.bytes.BytesData"):
    """Bytes that the bus does not interpret, such as a LiDAR packet.

    Attributes:
        data: the bytes.
    """

    data: bytes
