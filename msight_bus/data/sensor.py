"""What every sensor reading carries, and the plainest one: bytes."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from msight_bus.data.base import Data
from msight_bus.data.clock import now
from msight_bus.data.frame_id import new_frame_id

device_names: list[str] = []
"""The configured names of the buses that are open in this process; the last one is the device's."""


def _device_name() -> str | None:
    # Read when a value is made, not when this module is imported, so that a program may set it first.
    return device_names[-1] if device_names else os.environ.get("MSIGHT_EDGE_DEVICE_NAME") or None


class SensorData(Data, kw_only=True, tag="msight_core.data.base.SensorData"):
    """A reading of a sensor.

    Attributes:
        sensor_name: which sensor took it.
        capture_timestamp: when, in seconds since 1970 UTC.
        creation_timestamp: when this value was made, in seconds since 1970 UTC.
        frame_id: a new one by default; see ``new_frame_id``.
        device_name: which device sent it; by default ``BusSettings.edge_device_name`` of the bus that was opened last, without
            an open bus ``MSIGHT_EDGE_DEVICE_NAME``.
    """

    sensor_name: str | None = None
    capture_timestamp: float = msgspec.field(default_factory=now)
    creation_timestamp: float = msgspec.field(default_factory=now)
    frame_id: int = msgspec.field(default_factory=new_frame_id)
    device_name: str | None = msgspec.field(default_factory=_device_name)

    @property
    def time(self) -> str:
        """``capture_timestamp`` in local time, ISO 8601."""
        return datetime.fromtimestamp(self.capture_timestamp).isoformat()

    @property
    def capture_time(self) -> str:
        """The same as ``time``."""
        return self.time

    @property
    def creation_time(self) -> str:
        """``creation_timestamp`` in local time, ISO 8601."""
        return datetime.fromtimestamp(self.creation_timestamp).isoformat()


class BytesData(SensorData, tag="msight_core.data.bytes.BytesData"):
    """Bytes that the bus does not interpret, such as a packet of a lidar.

    Attributes:
        data: the bytes.
    """

    data: bytes
