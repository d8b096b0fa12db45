"""The pytest plugin (entry point ``pytest11``). Imports nothing of the package before a test uses the fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from msight_bus.testing import Simulation


@pytest.fixture
def msight_simulation() -> Simulation:
    """Return an in-memory broker without faults, into which a test can inject faults; see `Simulation`."""
    from msight_bus.testing import Simulation  # noqa: PLC0415 - see above

    return Simulation()
