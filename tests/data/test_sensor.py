from __future__ import annotations

import time
from datetime import datetime

import pytest

from msight_bus.data import BytesData, SensorData


def test_defaults_are_taken_when_a_value_is_made(monkeypatch):
    monkeypatch.setenv("MSIGHT_EDGE_DEVICE_NAME", "edge_one")
    before = time.time()
    value = SensorData(sensor_name="cam")
    assert before <= value.capture_timestamp <= value.creation_timestamp <= time.time()
    assert value.device_name == "edge_one"
    monkeypatch.setenv("MSIGHT_EDGE_DEVICE_NAME", "")
    assert SensorData().device_name is None


def test_a_decoded_value_keeps_the_name_of_the_device_that_sent_it(monkeypatch):
    monkeypatch.setenv("MSIGHT_EDGE_DEVICE_NAME", "sender")
    payload = SensorData().serialize()
    monkeypatch.setenv("MSIGHT_EDGE_DEVICE_NAME", "receiver")
    assert SensorData.deserialize(payload).device_name == "sender"


def test_times_are_iso_8601_in_local_time():
    value = SensorData(capture_timestamp=1700000000.25, creation_timestamp=1700000001.5)
    assert value.time == value.capture_time == datetime.fromtimestamp(1700000000.25).isoformat()
    assert value.creation_time == datetime.fromtimestamp(1700000001.5).isoformat()


def test_bytes_data_takes_its_bytes_by_position_as_in_msight():
    assert BytesData(b"abc", sensor_name="lidar").data == b"abc"
    with pytest.raises(TypeError):
        BytesData()  # type: ignore[call-arg]
