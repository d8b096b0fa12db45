"""For tests of one's own nodes: the in-memory broker behind connections that fail, on a clock that does not wait.

```python
from msight_bus.testing import Faults, Simulation

simulation = Simulation(Faults(drop=0.1, seed=7))


async def scenario():
    async with simulation.connect() as bus:
        ...

simulation.run(scenario())
```

pytest finds the fixture ``msight_simulation``, a `Simulation` without faults, wherever the package is installed.
"""

from __future__ import annotations

from msight_bus.testing.clock import VirtualClockLoop
from msight_bus.testing.faults import Fault, Faults
from msight_bus.testing.simulation import Simulation

__all__ = ["Fault", "Faults", "Simulation", "VirtualClockLoop"]
