"""The contract holds on one more way: the simulation without faults, on a real clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

import msight_bus
from msight_bus.events import BusEvent
from msight_bus.testing import Simulation
from tests.support.brokers import BACKENDS, Backend, make_backend


@dataclass(frozen=True)
class Simulated(Backend):
    simulation: Simulation = field(default_factory=Simulation)

    @asynccontextmanager
    async def connect(self, *, events: list[BusEvent] | None = None, **variables: str) -> AsyncIterator[msight_bus.Bus]:
        on_event = events.append if events is not None else lambda _: None
        async with self.simulation.connect(self.settings(**variables), on_event=on_event) as bus:
            yield bus


@pytest.fixture(params=[*BACKENDS, "simulation"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    return Simulated("memory", {}) if request.param == "simulation" else make_backend(request.param)
