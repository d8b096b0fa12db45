"""Start each broker, measure, and save the result."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import benchmarks.peers  # noqa: F401 - finds those that are installed, and their versions
from benchmarks.catalog import catalog
from benchmarks.curves import curves
from benchmarks.interleaving import Say
from benchmarks.rounds import Rounds
from benchmarks.runner import Runner
from benchmarks.scale import Scale
from msight_bus import brokers
from msight_bus.bench.machine import describe, versions

FORMAT = 1
_CURVES_SHARE = 1 / 8
"""Of the time for a backend."""

RESULTS = Path(__file__).parent / "results"


def measure(backends: Sequence[brokers.KindName], scale: Scale, say: Say) -> dict[str, Any]:
    """Measure each backend on its own broker; the result records a broker that cannot be started."""
    begun = time.monotonic()
    result: dict[str, Any] = {
        "format": FORMAT,
        "scale": scale.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks {' '.join(sys.argv[1:])}".strip(),
        "machine": describe(),
        "versions": versions(),
        "event_loop": "uvloop",
        "backends": {},
    }
    for backend in backends:
        try:
            with brokers.start(backend, report=say) as broker:
                result["backends"][backend] = on(broker, scale, say)
        except (brokers.NoBrokerError, brokers.BrokerUnavailableError) as error:
            problem = str(error).splitlines()[0]
            say(f"{backend}: {problem}")
            missing = {"broker": "none", "version": "", "is_stand_in": False, "problem": problem, "measurements": []}
            result["backends"][backend] = missing
    result["seconds"] = round(time.monotonic() - begun, 1)
    return result


def on(broker: brokers.RunningBroker, scale: Scale, say: Say) -> dict[str, Any]:
    """Measure on a running broker."""
    with Runner(broker.env) as runner:
        for_curves = scale.budget * _CURVES_SHARE if scale.rates else 0.0
        measured = Rounds(broker, runner, replace(scale, budget=scale.budget - for_curves), say).run()
        runner.dismiss()
        drawn = {"curves": curves(broker, runner, scale, say, for_curves)} if scale.rates else {}
    return {
        "broker": broker.name,
        "version": broker.version,
        "is_stand_in": broker.is_stand_in,
        "candidates": dict(catalog(broker.kind, scale.topics).titles),
        "measurements": [measurement.as_dict() for measurement in measured],
        **drawn,
    }


def save(result: dict[str, Any], path: Path | None = None) -> Path:
    """Write a result to ``path``; default: a file named by its date in ``benchmarks/results``."""
    if path is None:
        stamp = datetime.fromisoformat(result["started"]).strftime("%Y-%m-%dT%H%M%SZ")
        path = RESULTS / f"{stamp}-{result['scale']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
