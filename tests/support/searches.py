"""Number of examples and steps of the state machines."""

from __future__ import annotations

import os

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "50"))
