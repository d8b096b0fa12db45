"""The pytest plugin of msight_bus (entry point ``pytest11``).

It is no module of the package, so that pytest does not import the package where no test uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from msight_bus.testing import Simulation


@pytest.fixture
def msight_simulation() -> Simulation:
    """Return an in-memory broker without faults, into which a test can inject faults; see `Simulation`."""
    from msight_bus.testing import Simulation

    return Simulation()
