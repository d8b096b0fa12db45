"""The pytest plugin (entry point ``pytest11``)."""

from __future__ import annotations

import pytest

from msight_bus.testing.simulation import Simulation


@pytest.fixture
def msight_simulation() -> Simulation:
    """Return an in-memory broker without faults, into which a test can inject faults; see `Simulation`."""
    return Simulation()
