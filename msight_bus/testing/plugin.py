"""pytest's way in (entry point ``pytest11``)."""

from __future__ import annotations

import pytest

from msight_bus.testing.simulation import Simulation


@pytest.fixture
def msight_simulation() -> Simulation:
    """An in-memory broker without faults, until the test asks for some; see `msight_bus.testing.Simulation`."""
    return Simulation()
