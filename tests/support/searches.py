"""How far the state machines search for an order that nobody thought of."""

from __future__ import annotations

import os

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "50"))
