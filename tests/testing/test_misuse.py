"""A simulation that is held wrongly says how to hold it."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import ClosedError
from msight_bus.testing import Faults, Simulation, VirtualClockLoop


async def test_a_bus_that_is_closed_cannot_be_cut(msight_simulation):
    async with msight_simulation.connect() as bus:
        pass
    for act in (msight_simulation.disconnect, msight_simulation.reconnect):
        with pytest.raises(ClosedError, match="is not open in this simulation"):
            act(bus)


async def test_a_bus_of_another_simulation_cannot_be_cut(msight_simulation):
    async with Simulation().connect() as bus:
        with pytest.raises(ClosedError, match="is not open in this simulation"):
            msight_simulation.disconnect(bus)


def test_the_time_outside_of_a_running_loop():
    with pytest.raises(RuntimeError, match=r"Simulation\.now needs a running event loop"):
        _ = Simulation().now


async def test_run_inside_a_running_loop(msight_simulation):
    async def scenario():
        pass

    with pytest.raises(RuntimeError, match=r"await the scenario instead"):
        msight_simulation.run(scenario())  # a coroutine that is never awaited would be a warning, which fails this test


@pytest.mark.parametrize("wrong", [lambda: None, None, asyncio.sleep], ids=["function", "None", "coroutine function"])
def test_run_takes_a_coroutine(wrong):
    with pytest.raises(TypeError, match=r"Simulation\.run takes a coroutine, .*: run\(scenario\(\)\)"):
        Simulation().run(wrong)


def test_run_names_the_function_that_was_not_called():
    async def scenario():
        pass

    with pytest.raises(TypeError, match=r"not the function 'scenario'"):
        Simulation().run(scenario)


def sessions(simulation):
    """The sessions of three buses, one opened after the other."""

    async def scenario():
        found = []
        for _ in range(3):
            async with simulation.connect() as bus, bus.subscribe("a") as messages:
                await bus.publish("a", b"")
                found.append((await anext(messages)).session)
        return found

    return simulation.run(scenario())


def test_sessions_come_from_the_seed():
    first = sessions(Simulation(Faults(seed=1)))
    assert len(set(first)) == 3
    assert first == sessions(Simulation(Faults(seed=1)))
    assert not set(first) & set(sessions(Simulation(Faults(seed=2))))


def test_a_second_run_of_one_simulation_has_the_same_sessions():
    simulation = Simulation(Faults(seed=1))
    assert sessions(simulation) == sessions(simulation)


async def test_other_faults_within_a_run_repeat_no_session(msight_simulation):
    assert isinstance(asyncio.get_running_loop(), VirtualClockLoop)
    found = set()
    for _ in range(3):
        async with msight_simulation.connect() as bus, bus.subscribe("a") as messages:
            await bus.publish("a", b"")
            found.add((await anext(messages)).session)
        msight_simulation.faults = Faults(seed=0)
        msight_simulation.heal()
    assert len(found) == 3
