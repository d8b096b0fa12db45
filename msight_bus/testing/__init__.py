"""Test nodes without a broker: an in-memory broker whose connections fail, on a virtual clock.

```python
from msight_bus.testing import Faults, Simulation

simulation = Simulation(Faults(drop=0.1, seed=7))


async def scenario():
    async with simulation.connect() as bus:
        ...

simulation.run(scenario())
```

The package registers the pytest fixture ``msight_simulation``, a `Simulation` without faults.
"""

from __future__ import annotations

from msight_bus.testing.clock import VirtualClockLoop
from msight_bus.testing.faults import Fault, Faults
from msight_bus.testing.simulation import Simulation

__all__ = ["Fault", "Faults", "Simulation", "VirtualClockLoop"]
