"""Interleaved rounds: all candidates run in turn, so that changes of the machine affect all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.catalog import AGAIN
from msight_bus.bench.figures import Figures
from msight_bus.bench.jobs import VoidError
from msight_bus.bench.workers import WorkerError

Say = Callable[[str], None]
Once = Callable[[str], Figures]
"""One run of a candidate."""


def summary(runs: Sequence[Figures]) -> dict[str, Any]:
    """Return the median of each figure over runs, with the lowest and the highest."""
    return {
        name: {"median": median(values), "min": min(values), "max": max(values)}
        for name in runs[0]
        for values in [[run[name] for run in runs]]
    }


class DisturbedError(Exception):
    """The sender of a latency run was late; the error carries the figures."""

    def __init__(self, figures: Figures) -> None:
        super().__init__(f"the sender's slip is {figures['slip_p50']:.0f} us at p50, latency {figures['p50']:.0f} us")
        self.figures = figures


@dataclass(slots=True)
class Measurement:
    """One candidate in one measurement.

    Attributes:
        what: ``latency``, ``subscribe``, ``publish``, ``topics`` or ``memory``.
        size: payload bytes.
        candidate: name in the catalog.
        runs: figures of each round; ``None`` if both attempts were void.
        voids: reasons of void attempts.
        disturbed: rounds in which the sender was late twice; their figures are kept, but decide no target.
    """

    what: str
    size: int
    candidate: str
    runs: list[Figures | None] = field(default_factory=list)
    voids: list[str] = field(default_factory=list)
    disturbed: list[int] = field(default_factory=list)

    def as_dict(self) -> Any:
        """Return the measurement for a result file."""
        good = [run for run in self.runs if run is not None]
        return {
            "what": self.what,
            "size": self.size,
            "candidate": self.candidate,
            "summary": summary(good) if good else None,
            "runs": self.runs,
            "voids": self.voids,
            "disturbed": self.disturbed,
        }


class Interleaver:
    """Runs measurements, each for its rounds or until its time has passed.

    Attributes:
        results: results of all measurements so far.
        until: ``time.monotonic`` after which no further round starts; the first round always runs.
    """

    def __init__(self, broker: str, say: Say) -> None:
        self._broker, self._say = broker, say
        self.results: list[Measurement] = []
        self.until = float("inf")

    def measure(self, what: str, size: int, names: Sequence[str], rounds: int, once: Once) -> None:
        """Run ``rounds`` rounds of ``names``."""
        kept = {name: Measurement(what, size, name) for name in names if rounds}
        self.results += kept.values()
        for number in range(rounds):
            if number and time.monotonic() > self.until:
                self._say(f"{self._broker} {what} {size} B: the time is up after {number} of {rounds} rounds")
                break
            for name in names if number % 2 == 0 else names[::-1]:  # the order changes in each round
                if name != AGAIN:
                    self._say(f"{self._broker} {what} {size} B, round {number + 1} of {rounds}: {name}")
                kept[name].runs.append(self._twice(kept[name], number, once))

    def _twice(self, kept: Measurement, number: int, once: Once) -> Figures | None:
        disturbed: Figures | None = None
        for _ in range(2):
            try:
                return once(kept.candidate)
            except DisturbedError as error:
                disturbed, why = error.figures, str(error)
            except (VoidError, WorkerError) as error:
                why = str(error).strip().splitlines()[-1]
            kept.voids.append(why)
            self._say(f"  void: {self._broker} {kept.what} {kept.size} B {kept.candidate}: {why}")
        if disturbed is not None:
            kept.disturbed.append(number)
        return disturbed
