"""Nodes, their registry and their data live by the simulation's clock."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from msight_bus import BytesData, ImageData, NodeConfig, ProcessingNode, SourceNode, off_loop
from msight_bus.known_programs import FORGET_AFTER
from msight_bus.testing import Faults, Simulation, simulation
from tests.support.nodes import Collect, running

INTERVAL = 10.0
DAY = 86_400.0


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


async def test_latencies_and_rates_are_in_virtual_time(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        async with running(bus, *nodes()):
            await asyncio.sleep(4 * INTERVAL)
            camera, detector = registry["camera"].metrics, registry["detector"].metrics
    assert camera.rate_out == pytest.approx(10, rel=0.1)
    assert detector.rate_in == pytest.approx(10, rel=0.1)
    assert detector.latency_p50_ms == pytest.approx(50, abs=10)
    assert camera.latency_p50_ms < 1  # the handing over, and not the wait for the next frame


async def test_a_latency_begins_when_the_input_was_published(msight_simulation):
    msight_simulation.faults = Faults(seconds=1.0)
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))
    async with msight_simulation.connect() as bus, running(bus, sink):
        msight_simulation.inject("delay", topic="frames")
        await bus.publish("frames", b"late")
        await asyncio.sleep(2)
        assert sink.metrics().latency_p50_ms > 10


async def test_an_input_of_a_clock_that_is_ahead_has_no_latency(msight_simulation, monkeypatch):
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))
    async with msight_simulation.connect() as bus, running(bus, sink):
        now = simulation.clock_of(asyncio.get_running_loop())
        monkeypatch.setattr(simulation, "clock_of", lambda loop: lambda: now() + 60)
        async with msight_simulation.connect() as ahead:
            await ahead.publish("frames", b"")
            await sink.until(1)
            await asyncio.sleep(1)
        assert sink.metrics().latency_p50_ms is None


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


async def test_a_node_that_ended_long_ago_is_forgotten(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        async with running(bus, Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))):
            await asyncio.sleep(INTERVAL)
        await asyncio.sleep(FORGET_AFTER - INTERVAL)
        assert "sink" in registry
        await asyncio.sleep(3 * INTERVAL)
        assert "sink" not in registry


async def test_heartbeats_and_starts_are_of_the_simulations_day(msight_simulation):
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer:
        registry = await observer.nodes()
        before = msight_simulation.now
        async with running(bus, Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))):
            await asyncio.sleep(INTERVAL)
            seen = registry["sink"]
            assert before <= seen.started_at <= msight_simulation.now
            assert before <= seen.last_heartbeat <= msight_simulation.now


async def test_data_is_of_the_same_day_as_its_message(msight_simulation):
    async with msight_simulation.connect() as bus, bus.subscribe("frames") as messages:
        await bus.publish("frames", BytesData(data=b"frame"))
        message = await anext(messages)
    assert message.data.creation_timestamp == pytest.approx(message.published_at, abs=1)
    assert message.data.capture_timestamp == pytest.approx(message.published_at, abs=1)


async def test_data_of_a_source_is_of_the_same_day_as_its_message(msight_simulation):
    async with msight_simulation.connect() as bus, bus.subscribe("frames") as messages:
        async with running(bus, Camera(NodeConfig(name="camera", publish_topic_name="frames"))):
            message = await anext(messages)
    assert message.data.capture_timestamp == pytest.approx(message.published_at, abs=1)


async def test_the_clock_of_a_bus_is_the_simulations(msight_simulation):
    async with msight_simulation.connect() as bus:
        assert bus.clock() == msight_simulation.now
        assert await asyncio.to_thread(bus.clock) == pytest.approx(msight_simulation.now, abs=1)


async def test_the_clock_of_a_bus_on_another_loop_is_the_machines():
    async with Simulation().connect() as bus:
        assert abs(bus.clock() - time.time()) < DAY


async def by_a_thread(function):
    loop = asyncio.get_running_loop()
    made = loop.create_future()
    threading.Thread(target=lambda: loop.call_soon_threadsafe(made.set_result, function())).start()
    return await made


async def by_an_executor(function):
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, function)


@pytest.mark.parametrize("run", [off_loop, asyncio.to_thread, by_a_thread, by_an_executor])
async def test_data_made_off_the_loop_is_of_the_simulations_day(msight_simulation, run):
    data = await run(lambda: BytesData(data=b"frame"))
    assert data.capture_timestamp == pytest.approx(msight_simulation.now, abs=1)


async def test_an_image_made_of_an_array_is_of_the_simulations_day(msight_simulation):
    numpy = pytest.importorskip("numpy")
    image = ImageData.from_ndarray(numpy.zeros((2, 2), numpy.uint8), "ne", is_encoded=False)
    assert image.capture_timestamp == pytest.approx(msight_simulation.now, abs=1)
    assert image.creation_timestamp == pytest.approx(msight_simulation.now, abs=1)


def test_data_is_of_today_again_when_the_simulation_is_over():
    async def scenario():
        return BytesData(data=b"frame")

    simulated = Simulation().run(scenario())
    assert abs(simulated.capture_timestamp - time.time()) > DAY
    assert abs(BytesData(data=b"frame").capture_timestamp - time.time()) < DAY


def test_a_simulation_that_outlasts_another_keeps_its_clock():
    first_has_begun, second_has_begun, first_is_over = threading.Event(), threading.Event(), threading.Event()
    found = []

    async def first():
        first_has_begun.set()
        second_has_begun.wait(10)

    async def second():
        await asyncio.sleep(DAY)
        second_has_begun.set()
        first_is_over.wait(10)
        found.append(BytesData(data=b"frame").capture_timestamp - simulation.now)

    def run_first():
        Simulation().run(first())
        first_is_over.set()

    thread = threading.Thread(target=run_first)
    thread.start()
    first_has_begun.wait(10)
    simulation = Simulation()
    simulation.run(second(), within=2 * DAY)
    thread.join()
    assert found == [pytest.approx(0, abs=1)]
    assert abs(BytesData(data=b"frame").capture_timestamp - time.time()) < DAY


def test_a_registry_can_be_read_when_the_simulation_is_over():
    async def scenario():
        simulation = Simulation()
        async with simulation.connect() as bus, simulation.connect() as observer:
            registry = await observer.nodes()
            async with running(bus, Collect(NodeConfig(name="sink", subscribe_topic_name="frames"))):
                await asyncio.sleep(INTERVAL)
        return registry

    registry = Simulation().run(scenario())
    assert [(info.name, info.status) for info in registry] == [("sink", "STOPPED")]
