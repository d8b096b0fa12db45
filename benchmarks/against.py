"""``python -m benchmarks.against --base PATH``: compare the core of another checkout with this one.

The runs of both alternate on the same brokers, the base twice a round. The difference between the two runs of the base is noise;
a ratio within the noise is not significant.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer

from benchmarks.core import FIGURES, PRESENT, Core, FailedRunError, Figures, Row, rows
from benchmarks.measuring import save
from msight_bus.bench.machine import describe, in_words, versions

BASE, NOW, AGAIN = "base", "now", "base again"
Runs = dict[str, list[Figures | None]]
"""Figures of each round by arm; ``None`` if a run failed twice."""

_UNITS = {"rate": ("messages/s", ",.0f"), "cpu_us": ("CPU us each", ".2f"), "peak_mib": ("peak MiB", ".1f")}

RowsOption = Annotated[list[str] | None, typer.Option("--rows", help="Shell pattern, for example 'nats * 1 x *'.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds; each round runs each row on both sides.")]
MessagesOption = Annotated[int, typer.Option(min=1000, help="Messages of a run.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File for all runs, rewritten after each round.")]


def measure(
    trees: Mapping[str, Path], found: Sequence[Row], rounds: int, messages: int, path: Path | None
) -> dict[str, Any]:
    """Run every row once a round with each tree; save the result after each round if ``path`` is given."""
    result: dict[str, Any] = {
        "scale": "core",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "messages": messages,
        "machine": describe(),
        "versions": versions(),
        "commits": {arm: commit_of(tree) for arm, tree in trees.items()},
        "brokers": {},
        "rows": {row.name: {arm: [] for arm in trees} for row in found},
    }
    if path is not None:
        save(result, path)  # fail early if the path is not writable
    begun = time.monotonic()
    with Core(next(iter(trees.values())), messages) as core:
        for number in range(rounds):
            arms = list(trees.items())[:: 1 if number % 2 == 0 else -1]
            for place, row in enumerate(found, 1):
                for arm, tree in arms:
                    where = f"round {number + 1} of {rounds}, row {place} of {len(found)}"
                    typer.echo(f"{time.monotonic() - begun:6.1f} s  {where}: {row.name}, {arm}", err=True)
                    result["rows"][row.name][arm].append(_twice(core, row, tree))
            result["brokers"] = core.versions()
            if path is not None:
                save(result, path)
    return result


def _twice(core: Core, row: Row, tree: Path) -> Figures | None:
    for _ in range(2):
        try:
            return core.run(row, tree)
        except FailedRunError as error:
            typer.echo(f"  failed: {error}", err=True)
    return None


def commit_of(tree: Path) -> str:
    """Return the commit of a checkout, marked if it has changes."""
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    return "unknown"


def medians(runs: Sequence[Figures | None], figure: str) -> float | None:
    """Return the median of a figure over the runs with a result."""
    values = [run[figure] for run in runs if run is not None]
    return median(values) if values else None


def ratios(runs: Sequence[Figures | None], figure: str, *bases: Sequence[Figures | None]) -> list[float]:
    """Return the ratio to the mean of the bases of each round, sorted."""
    found = []
    for run, *base in zip(runs, *bases, strict=True):
        known = [each[figure] for each in base if each is not None]
        if run is not None and known:
            found.append(run[figure] / mean(known))
    return sorted(found)


def table(measured: Mapping[str, Runs]) -> Iterator[str]:
    """Yield lines with the medians, the ratio to the base, its spread over the rounds, and the base's ratio to itself."""
    yield f"{'':37}{'':12}{'base':>12}{'now':>12}{'ratio':>8}  {'spread':13}{'A/A band':13}"
    for name, runs in measured.items():
        for figure in FIGURES:
            unit, form = _UNITS[figure]
            line = f"{name if figure == FIGURES[0] else '':37}{unit:12}"
            for arms in ((BASE, AGAIN), (NOW,)):
                value = medians([run for arm in arms for run in runs.get(arm, ())], figure)
                line += f"{'-' if value is None else format(value, form):>12}"
            if NOW in runs:
                ratio = ratios(runs[NOW], figure, runs[BASE], runs[AGAIN])
                noise = ratios(runs[AGAIN], figure, runs[BASE])
                line += f"{format(median(ratio), '.2f') if ratio else '-':>8}  {_band(ratio):13}{_band(noise):13}"
            yield line.rstrip()


def _band(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} - {values[-1]:.2f}" if values else "-"


def show(result: Mapping[str, Any]) -> None:
    """Print a result."""
    for line in table(result["rows"]):
        typer.echo(line)
    arms = ", ".join(f"{arm} {commit}" for arm, commit in result["commits"].items())
    typer.echo(f"\n{arms}; {', '.join(result['brokers'].values())}; {in_words(result['machine'])}")


def chosen(patterns: Sequence[str] | None) -> list[Row]:
    """Return the rows for ``--rows``."""
    try:
        return rows(patterns or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def main(
    base: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Another checkout of this repository.")],
    patterns: RowsOption = None,
    rounds: RoundsOption = 5,
    messages: MessagesOption = 60_000,
    path: JsonOption = None,
) -> None:
    """Compare the core of another checkout with this one."""
    base = base.resolve()
    if not (base / "msight_bus" / "__init__.py").exists():
        raise typer.BadParameter(f"There is no package msight_bus in {base}.", param_hint="--base")
    show(measure({BASE: base, NOW: PRESENT, AGAIN: base}, chosen(patterns), rounds, messages, path))


if __name__ == "__main__":
    typer.run(main)
