"""From the options of a command to a result: which brokers, progress, tables, files, exit status."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import msight_bus
from msight_bus import brokers
from msight_bus.bench.compare import Comparison, Job, Place, Say
from msight_bus.bench.curves import RATES, SIZES
from msight_bus.bench.machine import describe, in_words, versions
from msight_bus.bench.own_report import page
from msight_bus.cli.bench.tables import show
from msight_bus.errors import BusError
from msight_bus.settings import BusSettings

FORMAT = 1
BACKENDS = ("redis", "nats", "kafka")
_ANSWER_WITHIN = "3"  # seconds
_CURVE_SECONDS = 0.6
_CURVES_MOST_SECONDS = 60.0
_NO_MEMORY = (
    "The memory backend joins tasks of one process, and this measures between processes. Choose a broker: "
    "--backend redis, nats or kafka (`msight-bus up redis` starts one)."
)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a result goes besides the terminal. A ``json`` of ``-`` is standard output, which then has nothing else."""

    json: Path | None = None
    html: Path | None = None


class Refused(Exception):  # noqa: N818 - what the user reads, not an error of the program
    """There is nothing to measure on; the text says what to do."""


def own_place(backend: str | None) -> Place:
    """The broker that the environment leads to.

    Raises:
        ConfigError: a variable is wrong.
        Refused: the backend is ``memory``.
    """
    chosen = BusSettings(backend=backend).backend
    if chosen == "memory":
        raise Refused(_NO_MEMORY)
    return Place(chosen, _env(chosen))


def _env(backend: str) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name.startswith("MSIGHT_")}
    return {**found, "MSIGHT_PUBSUB_BACKEND": backend}


def reachable_places(backends: Sequence[str], err: Console) -> list[Place]:
    """Those of ``backends``, or of all if there are none, that answer where the environment leads to.

    Raises:
        BusError: one that was asked for does not answer.
        Refused: none answers.
    """
    names = list(dict.fromkeys(backends)) or list(BACKENDS)
    problems = asyncio.run(_problems(names))
    for name, problem in problems.items():
        if problem and backends:
            raise problem
        if problem:
            err.print(f"{name} is left out: {str(problem).splitlines()[0]}", markup=False, soft_wrap=True)
    found = [Place(name, _env(name)) for name in names if not problems[name]]
    if not found:
        raise Refused("No broker answers. `--start` starts one of each kind on this machine for as long as it takes.")
    return found


async def _problems(names: Sequence[str]) -> dict[str, BusError | None]:
    async def problem(name: str) -> BusError | None:
        try:
            settings = BusSettings(environ={"MSIGHT_CONNECT_TIMEOUT": _ANSWER_WITHIN, **_env(name)})
            async with msight_bus.connect(settings):
                return None
        except BusError as error:
            return error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again, once for each process that measures
        return dict(zip(names, await asyncio.gather(*map(problem, names)), strict=True))


def started_places(backends: Sequence[str], stack: ExitStack, err: Console) -> list[Place]:
    """A broker of each kind on this machine, until ``stack`` closes; a kind that is not to be had is left out, and said.

    Raises:
        BrokerUnavailableError: one that was asked for cannot be started.
        Refused: none can be started.
    """
    found = []
    for kind in brokers.KINDS:
        if backends and kind not in backends:
            continue
        try:
            broker = stack.enter_context(
                brokers.start(kind, report=lambda line: err.print(line, markup=False, soft_wrap=True))
            )
        except brokers.BrokerUnavailableError as error:
            if backends:
                raise
            err.print(f"{kind} is left out: {str(error).splitlines()[0]}", markup=False, soft_wrap=True)
            continue
        stand_in = " (a stand-in, not Apache Kafka)" if broker.is_stand_in else ""
        env = {**broker.env, "MSIGHT_PUBSUB_BACKEND": kind}
        found.append(Place(kind, env, f"{broker.name} {broker.version}{stand_in}"))
    if not found:
        raise Refused("No broker could be started.")
    return found


def measure(
    choose: Callable[[ExitStack, Console], list[Place]],
    jobs: Sequence[Job],
    outputs: Outputs,
    *,
    seconds: float,
    rounds: int = 1,
    loop: str = "uvloop",
    curves: bool = False,
) -> None:
    """Measure and show; what goes wrong becomes one line and exit status 1."""
    err = Console(stderr=True, highlight=False)
    try:
        with ExitStack() as stack:
            places = choose(stack, err)
            result = _result(places, rounds)
            err.print(f"{', '.join(place.backend for place in places)}; {in_words(result['machine'])}", markup=False)
            begun = time.monotonic()
            runs = len(jobs) * rounds * (len(places) + (rounds > 1))
            runs += (len(RATES) + len(SIZES)) * len(places) if curves else 0
            with _progress(runs, err) as say, Comparison(places, seconds=seconds, loop=loop) as comparison:
                rows = comparison.run(jobs, rounds, say)
                if curves:
                    result["curves"] = comparison.curves(_CURVE_SECONDS, _CURVES_MOST_SECONDS * len(places), say)
            result["measurements"] = [row.as_dict() for row in rows]
            result["seconds"] = round(time.monotonic() - begun, 1)
    except (BusError, Refused) as error:
        err.print(str(error).strip(), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    _write(result, outputs, err)
    if any(row["summary"] is None for row in result["measurements"]):
        raise typer.Exit(1)


def _result(places: Sequence[Place], rounds: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"msight-bus {' '.join(sys.argv[1:])}",
        "machine": describe(),
        "versions": versions(),
        "rounds": rounds,
        "backends": {place.backend: place.broker for place in places},
    }


def _write(result: dict[str, Any], outputs: Outputs, err: Console) -> None:
    text = json.dumps(result, indent=1) + "\n"
    if outputs.json == Path("-"):
        sys.stdout.write(text)
        show(result, err)
    else:
        show(result, Console(highlight=False))
        if outputs.json is not None:
            outputs.json.write_text(text)
            err.print(f"written to {outputs.json}", markup=False, soft_wrap=True)
    if outputs.html is not None:
        outputs.html.write_text(page(result))
        err.print(f"written to {outputs.html}", markup=False, soft_wrap=True)


@contextmanager
def _progress(runs: int, err: Console) -> Iterator[Say]:
    """A bar with the time that is left in a terminal, else a line a run."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("connecting", total=runs)
            begun = 0

            def advance(what: str) -> None:
                nonlocal begun
                bar.update(task, description=what, completed=begun)
                begun += 1

            yield advance
        return
    begun_at, number = time.monotonic(), 0

    def line(what: str) -> None:
        nonlocal number
        left = (time.monotonic() - begun_at) / number * (runs - number) if number else 0.0
        number += 1
        err.print(f"{number}/{runs} {what}" + (f"; {left:.0f} s left" if left else ""), markup=False, soft_wrap=True)

    yield line
