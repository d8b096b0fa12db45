"""Typed sensor data in MSight's MessagePack form.

A value is one map whose first entry is ``data_type``, the tag of its class. MSight Core and this package read each other's
bytes. Decoding looks the tag up in a registry of classes; a received name is never imported or evaluated.
"""

from __future__ import annotations

from msight_bus.data.base import Data
from msight_bus.data.decoding import decode, decode_plain, looks_like_data
from msight_bus.data.frame_id import new_frame_id
from msight_bus.data.image import ImageData
from msight_bus.data.sensor import BytesData, SensorData

__all__ = [
    "BytesData",
    "Data",
    "ImageData",
    "SensorData",
    "decode",
    "decode_plain",
    "looks_like_data",
    "new_frame_id",
]
