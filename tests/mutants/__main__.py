"""``python -m tests.mutants --seed 1 --count 100``: mutate the package, one place at a time, and run the tests of that place.

Results go to a file, and a mutant that is in it is not tried again: an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.mutants.running import Copy, Outcome, copied
from tests.mutants.sampling import PROJECT, Mutant, sample, suites_of

_LEFT_OUT = 3  # tests of a suite
_LONGEST = 900.0  # seconds for a suite of the unchanged project


def main(
    seed: Annotated[int, typer.Option(help="of the sample")] = 1,
    count: Annotated[int, typer.Option(help="mutants in the sample")] = 100,
    only: Annotated[str, typer.Option(help="the files whose path begins so")] = "msight_bus/",
    results: Annotated[Path, typer.Option(help="one line of JSON a mutant")] = PROJECT / "out" / "mutants.jsonl",
) -> None:
    """Try each mutant of the sample that has no result yet, then list those that no test noticed."""
    os.nice(10)
    chosen = sample(seed, count, only)
    results.parent.mkdir(parents=True, exist_ok=True)
    known = {each["identity"]: each for each in _read(results)}
    with copied() as copy:
        trial = Trial(copy)
        for number, mutant in enumerate(chosen, 1):
            if mutant.identity not in known:
                known[mutant.identity] = result = trial.of(mutant)
                if result["status"] != "untried":
                    with results.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                typer.echo(f"{number}/{len(chosen)} {result['status']:8} {mutant}  {result['by']}")
    _report(chosen, known)


class Trial:
    """Tries mutants in a copy, whose tests pass as long as nothing is mutated."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self._unchanged: dict[tuple[str, ...], tuple[list[str], Outcome]] = {}

    def of(self, mutant: Mutant) -> dict[str, Any]:
        """Run the tests of one mutant."""
        found = {"identity": mutant.identity, "mutant": str(mutant), "status": "survived", "by": "", "seconds": 0.0}
        seconds = 0.0
        for arguments in suites_of(mutant.path):
            passing, unchanged = self._without_mutant(arguments)
            if unchanged.status != "passed":
                return {**found, "status": "untried", "by": f"without a mutation: {unchanged.status} {unchanged.by}"}
            with self._copy.with_mutant(mutant):
                outcome = self._copy.test(passing, 60 + 3 * unchanged.seconds)
            seconds += outcome.seconds
            found["seconds"] = round(seconds, 1)
            if outcome.status != "passed":
                return {**found, "status": "killed", "by": outcome.by or outcome.status}
        return found

    def _without_mutant(self, arguments: list[str]) -> tuple[list[str], Outcome]:
        """The tests that pass without a mutation: up to three that fail are left out, and named."""
        key = tuple(sorted(arguments))
        left_out: list[str] = []
        while key not in self._unchanged:
            deselected = [f"--deselect={test}" for test in left_out]
            outcome = self._copy.test([*arguments, *deselected], _LONGEST)
            if outcome.status == "failed" and outcome.by.startswith("tests/") and len(left_out) < _LEFT_OUT:
                typer.echo(f"left out, because it fails without a mutation: {outcome.by}")
                left_out.append(outcome.by)
            else:
                self._unchanged[key] = deselected, outcome
        deselected, outcome = self._unchanged[key]
        return [*arguments, *deselected], outcome


def _read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _report(chosen: list[Mutant], known: dict[str, dict[str, Any]]) -> None:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for mutant in chosen:
        counts[str(Path(mutant.path).parent)][known[mutant.identity]["status"]] += 1
    for folder, by_status in sorted(counts.items()):
        typer.echo(f"{folder}: " + ", ".join(f"{number} {status}" for status, number in sorted(by_status.items())))
    survivors = [mutant for mutant in chosen if known[mutant.identity]["status"] == "survived"]
    typer.echo(f"{len(survivors)} of {len(chosen)} mutants survived")
    for mutant in survivors:
        typer.echo(f"  {mutant}")


if __name__ == "__main__":
    typer.run(main)
