"""``python -m tests.faults.rounds --rounds 30 --seed 1``: run each fault's rounds and write a record."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import msight_bus
from msight_bus.bench.machine import describe, versions
from tests.faults.rounds.run import run_rounds
from tests.faults.rounds.scenes import SCENES

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def main(
    rounds: Annotated[int, typer.Option(help="of each fault")] = 30,
    seed: Annotated[int, typer.Option(help="of all that is random")] = 1,
    only: Annotated[str, typer.Option(help="faults whose names begin so")] = "",
    out: Annotated[Path, typer.Option(help="where the record goes")] = RESULTS,
) -> None:
    """Harm Kafka, its network and its groups, and keep a ledger of every message."""
    logging.disable(logging.ERROR)  # each fault is one
    record: dict[str, Any] = {
        "what": "rounds",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verdict": "",
        "plan": {"rounds": rounds, "seed": seed},
        "machine": describe(),
        "versions": versions(),
        "broker": "",
        "faults": {},
    }
    path = out / f"rounds-kafka-{record['date'][:10]}.json"
    for name in SCENES:
        if name.startswith(only):
            try:
                result = msight_bus.run(run_rounds(name, rounds, seed))
            except Exception as error:  # the record says so
                traceback.print_exc()
                record["faults"][name] = {"wrong": [f"{type(error).__name__}: {error}"]}
            else:
                record["broker"] = result.broker
                record["faults"][name] = {key: value for key, value in asdict(result).items() if key != "broker"}
            typer.echo(f"{name}: {json.dumps(record['faults'][name])}")
            failed = [name for name, result in record["faults"].items() if result["wrong"]]
            record["verdict"] = "FAIL" if failed else "PASS"
            path.write_text(json.dumps(record, indent=1) + "\n")  # a run takes long
    typer.echo(f"{record['verdict']}: {path}")
    sys.exit(record["verdict"] != "PASS")


if __name__ == "__main__":
    typer.run(main)
