"""What sensors send: rates and sizes that occur at an intersection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """One sensor.

    Attributes:
        name: what it is.
        rate: messages a second.
        size: bytes of a message.
    """

    name: str
    rate: float
    size: int


IMU = Stream("imu", 200, 64)
GNSS = Stream("gnss", 10, 200)
RADAR = Stream("radar", 20, 4 * 1024)
CAMERA = Stream("camera", 30, 100 * 1024)
LIDAR = Stream("lidar", 10, 1_000_000)

PROFILES: Mapping[str, tuple[Stream, ...]] = {
    **{stream.name: (stream,) for stream in (IMU, GNSS, RADAR, CAMERA, LIDAR)},
    "mix": (IMU, GNSS, RADAR, CAMERA, LIDAR),
}
"""Streams by profile; those of ``mix`` run at the same time."""
