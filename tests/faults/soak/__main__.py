"""``python -m tests.faults.soak --backend redis --seconds 900 --seed 1``: run a soak and write its record."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import msight_bus
from msight_bus.bench.machine import describe, versions
from tests.faults.soak import kafka, live
from tests.faults.soak.course import Course, Plan, total
from tests.support.rig import Leftovers

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
_SOAKS = {"redis": live.soak, "nats": live.soak, "kafka": kafka.soak}


def main(  # noqa: PLR0917 - options, all named
    backend: Annotated[str, typer.Option(help="redis, nats or kafka")] = "redis",
    seconds: Annotated[float, typer.Option(help="it takes no longer")] = 3600,
    seed: Annotated[int, typer.Option(help="of all that is random")] = 1,
    kills: Annotated[int, typer.Option(help="of the broker; by default 300, on Kafka 100")] = -1,
    faults: Annotated[int, typer.Option(help="of connections; by default 2000, none on Kafka")] = -1,
    rebalances: Annotated[int, typer.Option(help="by default 100 on Kafka, none elsewhere")] = -1,
    out: Annotated[Path, typer.Option(help="where the record goes")] = RESULTS,
) -> None:
    """Harm a real broker, its connections and its clients at random, and keep a ledger of every message."""
    default = (100, 0, 100) if backend == "kafka" else (300, 2000, 0)
    wanted = [given if given >= 0 else usual for given, usual in zip((kills, faults, rebalances), default, strict=True)]
    plan = Plan(backend, seed, seconds, *wanted)
    logging.disable(logging.ERROR)  # each fault is one
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    machine = describe()
    leftovers = Leftovers()
    course = msight_bus.run(_run(plan))
    figures = course.figures(leftovers.now())
    wrong = course.verdict(figures)
    record = {
        "what": "soak",
        "date": started,
        "verdict": "FAIL" if wrong else "PASS",
        "wrong": wrong,
        "plan": asdict(plan),
        "machine": machine,
        "versions": versions(),
        "broker": course.broker,
        "figures": figures,
    }
    path = out / f"soak-{backend}-{record['date'][:10]}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    typer.echo(f"{record['verdict']}: {total(record['figures']['ledger'])}\n{path}")
    for line in record["wrong"]:
        typer.echo(f"  {line}")
    sys.exit(bool(record["wrong"]))


async def _run(plan: Plan) -> Course:
    course = Course(plan, typer.echo)
    watching = asyncio.create_task(course.watch_memory(), name="memory")
    try:
        await _SOAKS[plan.backend](course)
    except Exception as error:  # the record says so
        traceback.print_exc()
        course.failures.append(f"{type(error).__name__}: {error}")
    finally:
        watching.cancel()
        await asyncio.wait((watching,))
    course.note_tasks_left()
    return course


if __name__ == "__main__":
    typer.run(main)
