"""``python -m benchmarks camera``: processor time of Kafka subscribers at the rate of cameras, 200 KB and 120 a second.

Processor time depends less than latency on what else the machine runs; compare the ratios, each of one round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

import benchmarks.peers  # noqa: F401 - finds those that are installed, and their versions
from benchmarks.catalog import BUS, CEILING, CONFLUENT, catalog
from benchmarks.logs import Logs
from benchmarks.measuring import save
from benchmarks.runner import Runner
from msight_bus import brokers
from msight_bus.bench.figures import Figures, of_latency
from msight_bus.bench.jobs import Plan
from msight_bus.bench.machine import describe, in_words, versions

SIZE, HERTZ = 200_000, 120.0
NAMES = (CEILING, CONFLUENT, BUS)
TARGET = 1.2
"""Most processor time of the bus, as a ratio to confluent-kafka's."""

_WARM_UP = 1.0


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Run each subscriber once a round, on a broker started for this measurement."""
    found = catalog("kafka", topics=0)
    result: dict[str, Any] = {
        "scale": "camera",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "versions": versions(),
        "rows": {name: [] for name in NAMES},
    }
    with brokers.start("kafka") as broker, Runner(broker.env) as runner:
        result["broker"] = f"{broker.name} {broker.version}"
        logs = Logs(broker.env["MSIGHT_KAFKA_SERVERS"])
        for number in range(rounds):
            for name in NAMES[:: 1 if number % 2 == 0 else -1]:
                plan = Plan(f"bench.camera{number}.{NAMES.index(name)}", SIZE, seconds, _WARM_UP, rate=HERTZ)
                logs.make(plan.topic)
                outcome = runner.run(found.publishers[CEILING], found.subscribers[name], plan)
                result["rows"][name].append(of_latency(*outcome, SIZE))
                typer.echo(
                    f"round {number + 1} of {rounds}: {name}, {result['rows'][name][-1]['cpu_us']:.0f} us", err=True
                )
    return result


def lines(rows: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Return the medians of each subscriber, and the ratio of its processor time to confluent-kafka's, round by round."""
    found = []
    for name, runs in rows.items():
        ratios = sorted(run["cpu_us"] / other["cpu_us"] for run, other in zip(runs, rows[CONFLUENT], strict=True))
        line = f"{name:18}{median(run['cpu_us'] for run in runs):7.0f} us CPU{median(run['p50'] for run in runs):8.0f} us p50"
        found.append(f"{line}   x {median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})")
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each subscriber runs once a round.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of a run, after its warm-up.")] = 4.0,
    path: Annotated[Path | None, typer.Option("--json", help="File for the result.")] = None,
) -> None:
    """Compare the processor time of Kafka subscribers that receive 200 KB 120 times a second."""
    result = measure(rounds, seconds)
    for line in lines(result["rows"]):
        typer.echo(line)
    typer.echo(f"target of the bus: x {TARGET:.2f}; {result['broker']}; {in_words(result['machine'])}")
    if path is not None:
        typer.echo(f"written to {save(result, path)}")
