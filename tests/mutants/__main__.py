"""``python -m tests.mutants --seed 1 --count 100``: mutate the package, one place at a time, and run the tests of that place.

The tests of a package run once without a mutation, which records which of them run the statement of each mutant. Results go to a
file, and a mutant that is in it is not tried again: an interrupted run continues from it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.mutants.running import Copy, Recording, copied
from tests.mutants.sampling import PROJECT, Mutant, sample, suites_of
from tests.support.brokers import share_brokers, stop_brokers

_LONGEST = 1800.0  # seconds for the tests of a package
_COLLECTION = 180.0  # seconds for the collection of tests, at most
_SLOWER = 3  # times: how much longer a test takes with a mutant that lets it exceed a deadline than without


def main(  # noqa: PLR0917 - typer calls it
    seed: Annotated[int, typer.Option(help="of the sample")] = 1,
    count: Annotated[int, typer.Option(help="mutants in the sample")] = 100,
    only: Annotated[str, typer.Option(help="the files whose path begins so")] = "msight_bus/",
    results: Annotated[Path, typer.Option(help="one line of JSON a mutant")] = PROJECT / "out" / "mutants.jsonl",
    seconds: Annotated[float, typer.Option(help="of tests for a mutant, the fastest of those that run it")] = 30.0,
    jobs: Annotated[int, typer.Option(help="mutants that are tried at the same time")] = 2,
) -> None:
    """Try each mutant of the sample that has no result yet, then list those that no test noticed.

    A mutant is tried with as many of the tests that run its statement as take --seconds without it. It counts as killed if a
    test fails twice with it and passes without it; a test that exceeds a deadline must pass in less than a third of that time.
    """
    os.nice(max(0, 10 - os.nice(0)))
    chosen = sample(seed, count, only)
    results.parent.mkdir(parents=True, exist_ok=True)
    known = {each["identity"]: each for each in _read(results)}
    share_brokers()
    try:
        asyncio.run(_try([mutant for mutant in chosen if mutant.identity not in known], known, results, seconds, jobs))
    finally:
        stop_brokers()
    _report(chosen, known)


async def _try(mutants: Sequence[Mutant], known: dict[str, Any], results: Path, seconds: float, jobs: int) -> None:
    recordings = Recordings(mutants)
    waiting = iter(mutants)

    async def work() -> None:
        with copied() as copy:
            for mutant in waiting:
                began = time.monotonic()
                status, by = await Trial(copy, recordings, seconds).of(mutant)
                found = {"identity": mutant.identity, "mutant": str(mutant), "status": status, "by": by}
                known[mutant.identity] = found
                if status != "untried":
                    with results.open("a") as file:
                        file.write(json.dumps(found) + "\n")
                typer.echo(f"{len(known)} {status:8} {mutant}  {by}  {time.monotonic() - began:.0f} s")

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(work())


class Recordings:
    """The recordings of the tests of all packages, each made when it is first asked for."""

    def __init__(self, mutants: Sequence[Mutant]) -> None:
        self._lines: dict[str, list[int]] = defaultdict(list)
        for mutant in mutants:
            self._lines[mutant.path].append(mutant.mutation.line)
        self._known: dict[tuple[str, ...], Recording] = {}
        self._lock = asyncio.Lock()

    async def of(self, arguments: Sequence[str], copy: Copy) -> Recording:
        """Return the recording of the tests that pytest selects with these arguments, made in ``copy``."""
        key = tuple(sorted(arguments))
        async with self._lock:
            if key not in self._known:
                self._known[key] = await copy.record(arguments, self._lines, _LONGEST)
            return self._known[key]


class Trial:
    """Tries mutants in a copy, with the tests that pass without a mutation."""

    def __init__(self, copy: Copy, recordings: Recordings, seconds: float) -> None:
        self._copy = copy
        self._recordings = recordings
        self._seconds = seconds

    async def of(self, mutant: Mutant) -> tuple[str, str]:
        """Run the tests of one mutant; return ``killed``, ``survived`` or ``untried``, and by which test or how many."""
        ran, existing = 0, 0
        for arguments in suites_of(mutant.path):
            recording = await self._recordings.of(arguments, self._copy)
            tests, number = chosen_tests(mutant, recording, self._seconds)
            status, by = await self._outcome(mutant, tests)
            if status != "survived":
                return status, by
            ran, existing = ran + len(tests), existing + number
        return "survived", f"{ran} of {existing} tests"

    async def _outcome(self, mutant: Mutant, seconds: dict[str, float]) -> tuple[str, str]:
        tests = list(seconds)
        within = _COLLECTION + _SLOWER * sum(seconds.values())
        while tests:
            outcome = await self._copy.test(tests, within, mutant)
            if outcome.status == "passed":
                return "survived", ""
            suspects = [outcome.by] if outcome.by in tests else tests
            without = await self._copy.test(suspects, within)
            # If a deadline failed the test, the machine can be overloaded.
            if without.status == "passed" and (not outcome.late or _SLOWER * without.seconds < outcome.seconds):
                return "killed", outcome.by or outcome.status
            if suspects is tests:
                return "untried", f"{outcome.status} without the mutant {outcome.by}".strip()
            tests.remove(outcome.by)
        return "survived", ""


def chosen_tests(mutant: Mutant, recording: Recording, most: float) -> tuple[dict[str, float], int]:
    """Return the tests of a mutant that take up to ``most`` seconds, at least one, and how many run its statement.

    Those in the file named as its module are first, then the shortest.
    """
    run = recording.tests[mutant.path, mutant.mutation.line] & recording.seconds.keys()
    own = f"/test_{Path(mutant.path).stem}.py::"
    chosen: dict[str, float] = {}
    for test in sorted(run, key=lambda test: (own not in test, recording.seconds[test], test)):
        if chosen and sum(chosen.values()) + recording.seconds[test] > most:
            break
        chosen[test] = recording.seconds[test]
    return chosen, len(run)


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
