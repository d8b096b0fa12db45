"""Nodes, their registry and their data live by the simulation's clock."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import BytesData, NodeConfig, ProcessingNode, SourceNode
from tests.support.nodes import Collect, running

INTERVAL = 10.0
real_time = pytest.mark.xfail(strict=True, reason="G4: nodes and registry keep real time in a simulation")


class Camera(SourceNode):
    """Ten frames a second."""

    async def get_data(self):
        await asyncio.sleep(0.1)
        return BytesData(sensor_name="ne", data=b"frame")


class Detector(ProcessingNode):
    """Takes 50 ms for each frame."""

    async def process(self, data):
        await asyncio.sleep(0.05)
        return data


def nodes():
    return (
        Detector(NodeConfig(name="detector", subscribe_topic_name="frames", publish_topic_name="boxes")),
        Camera(NodeConfig(name="camera", publish_topic_name="frames")),
    )


@real_time
async def test_latencies_and_rates_are_in_virtual_time(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        async with running(bus, *nodes()):
            await asyncio.sleep(4 * INTERVAL)
            camera, detector = registry["camera"].metrics, registry["detector"].metrics
    assert camera.rate_out == pytest.approx(10, rel=0.1)
    assert detector.rate_in == pytest.approx(10, rel=0.1)
    assert detector.latency_p50_ms == pytest.approx(50, abs=10)
    assert camera.latency_p50_ms == pytest.approx(100, abs=10)


@real_time
async def test_a_node_that_is_silent_is_lost_and_comes_back(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        sink = Collect(NodeConfig(name="sink", subscribe_topic_name="frames", heartbeat_update_interval=INTERVAL))
        async with running(bus, sink):
            await asyncio.sleep(INTERVAL)
            assert registry["sink"].status == "RUNNING"
            msight_simulation.disconnect(bus)
            await asyncio.sleep(4 * INTERVAL)
            assert registry["sink"].status == "LOST"
            msight_simulation.reconnect(bus)
            await asyncio.sleep(2 * INTERVAL)
            assert registry["sink"].status == "RUNNING"


@real_time
async def test_a_node_that_ended_long_ago_is_forgotten(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        async with running(bus, Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))):
            await asyncio.sleep(INTERVAL)
        await asyncio.sleep(2 * 3600)
        assert "sink" not in registry


@real_time
async def test_heartbeats_and_starts_are_of_the_simulations_day(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        before = msight_simulation.now
        async with running(bus, Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))):
            await asyncio.sleep(INTERVAL)
            seen = registry["sink"]
            assert before <= seen.started_at <= msight_simulation.now
            assert before <= seen.last_heartbeat <= msight_simulation.now


@real_time
async def test_data_is_of_the_same_day_as_its_message(msight_simulation):
    async with msight_simulation.connect() as bus, bus.subscribe("frames") as messages:
        await bus.publish("frames", BytesData(data=b"frame"))
        message = await anext(messages)
    assert message.data.creation_timestamp == pytest.approx(message.published_at, abs=1)
    assert message.data.capture_timestamp == pytest.approx(message.published_at, abs=1)


@real_time
async def test_data_of_a_source_is_of_the_same_day_as_its_message(msight_simulation):
    async with msight_simulation.connect() as bus, bus.subscribe("frames") as messages:
        async with running(bus, Camera(NodeConfig(name="camera", publish_topic_name="frames"))):
            message = await anext(messages)
    assert message.data.capture_timestamp == pytest.approx(message.published_at, abs=1)
