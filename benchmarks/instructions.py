"""``python -m benchmarks.instructions --base PATH``: compare the machine instructions per message of two checkouts.

Other programs on the machine change times, but not the number of instructions. A program runs twice under valgrind, with few and
with many messages; the difference excludes loading and connecting. Instructions of the interpreter and of C libraries are
counted, those of the kernel are not. The size of a read depends on timing, so figures vary by a few percent.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.against import BASE, NOW, JsonOption, RowsOption, chosen, commit_of
from benchmarks.core import PRESENT, Core, FailedRunError, Row
from benchmarks.measuring import save
from msight_bus.bench.machine import describe, in_words, versions

Counts = dict[str, float | None]
"""Instructions per message by arm; ``None`` if a run failed."""

MessagesOption = Annotated[int, typer.Option(min=1000, help="Messages of the longer run; the shorter has a quarter.")]


def count(few: Core, many: Core, row: Row, tree: Path, messages: int) -> float | None:
    """Return the instructions per message of ``row``; ``messages``: the difference between the runs."""
    try:
        return (many.run(row, tree)["instructions"] - few.run(row, tree)["instructions"]) / messages
    except FailedRunError as error:
        typer.echo(f"  failed: {error}", err=True)
        return None


def line_of(name: str, counts: Counts) -> str:
    """Return a row of the table, with the ratio to the base."""
    base, now = counts.get(BASE), counts.get(NOW)
    cells = "".join(f"{'-' if value is None else format(value, ',.0f'):>12}" for value in (base, now))
    return f"{name:37}{cells}{format(now / base, '.2f') if base and now else '-':>8}"


def main(
    base: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Another checkout of this repository.")],
    patterns: RowsOption = None,
    messages: MessagesOption = 24_000,
    path: JsonOption = None,
) -> None:
    """Compare the machine instructions per message of another checkout and this one."""
    base = base.resolve()
    if not (base / "msight_bus" / "__init__.py").exists():
        raise typer.BadParameter(f"There is no package msight_bus in {base}.", param_hint="--base")
    if shutil.which("valgrind") is None:
        raise typer.BadParameter("valgrind is not installed; install it to count instructions.", param_hint="--base")
    found = chosen(patterns)
    trees = {BASE: base, NOW: PRESENT}
    result: dict[str, Any] = {
        "scale": "instructions",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "messages": messages,
        "machine": describe(),
        "versions": versions(),
        "commits": {arm: commit_of(tree) for arm, tree in trees.items()},
        "rows": {},
    }
    few = messages // 4
    typer.echo(f"{'instructions of a message':37}{'base':>12}{'now':>12}{'ratio':>8}")
    with Core(base, few, counted=True) as shorter, Core(base, messages, counted=True) as longer:
        for row in found:
            counts = {arm: count(shorter, longer, row, tree, messages - few) for arm, tree in trees.items()}
            result["rows"][row.name] = counts
            typer.echo(line_of(row.name, counts))
            if path is not None:
                save(result, path)
    typer.echo(f"\nbase {result['commits'][BASE]}, now {result['commits'][NOW]}; {in_words(result['machine'])}")


if __name__ == "__main__":
    typer.run(main)
