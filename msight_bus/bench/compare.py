"""Measures the bus on one or several brokers: the same jobs on each, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

from msight_bus.bench.curves import RATES, SIZES, Pair, by_rate, by_size
from msight_bus.bench.figures import Figures, is_disturbed, record
from msight_bus.bench.jobs import VoidError
from msight_bus.bench.own_broker import fresh_topic, latency, sides, throughput, together
from msight_bus.bench.profiles import Stream
from msight_bus.bench.stage import Stage
from msight_bus.bench.worker import WorkerError

AGAIN = " again"
"""Marks the first backend's second run in a round: what it is to its first run is the A/A band."""

Say = Callable[[str], None]
"""Called with what begins now; one call is one run."""


@dataclass(frozen=True, slots=True)
class Place:
    """A broker to measure on.

    Attributes:
        backend: ``redis``, ``nats`` or ``kafka``.
        env: the ``MSIGHT_`` variables that lead to it.
        broker: product and version, where they are known.
    """

    backend: str
    env: Mapping[str, str]
    broker: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured: the latency of streams that run at the same time, or the throughput of a size.

    Attributes:
        name: in tables.
        streams: empty for throughput.
        size: bytes of a message, for throughput.
    """

    name: str
    streams: tuple[Stream, ...] = ()
    size: int = 0

    @property
    def rows(self) -> list[str]:
        """Names of what one run gives."""
        if len(self.streams) > 1:
            return [f"{self.name}: {stream.name}" for stream in self.streams]
        return [self.name]


@dataclass(slots=True)
class Row:
    """The runs of one backend in one measurement.

    Attributes:
        what: ``latency`` or ``throughput``.
        name: of the measurement.
        backend: with ``AGAIN`` behind it for the second run.
        runs: figures by round; ``None`` where the run was void.
        voids: why runs were void.
        disturbed: rounds in which the sender was late by more than a tenth of the latency.
    """

    what: str
    name: str
    backend: str
    runs: list[Figures | None] = field(default_factory=list)
    voids: list[str] = field(default_factory=list)
    disturbed: list[int] = field(default_factory=list)

    def add(self, figures: Figures) -> None:
        """The figures of a round."""
        if self.what == "latency" and is_disturbed(figures):
            self.disturbed.append(len(self.runs))
        self.runs.append(figures)

    def as_dict(self) -> Any:
        """For a result file."""
        labels = {"what": self.what, "name": self.name, "backend": self.backend}
        return record(labels, self.runs, self.voids, self.disturbed)


class Comparison:
    """Runs jobs on every place. Publisher and subscriber of a place are two processes that stay for all rounds."""

    def __init__(self, places: Sequence[Place], *, seconds: float, loop: str = "uvloop") -> None:
        self._places = places
        self._seconds = seconds
        self._loop = loop
        self._stack = ExitStack()
        self._stages: dict[str, Stage] = {}

    def __enter__(self) -> Self:
        for place in self._places:
            self._stages[place.backend] = self._stack.enter_context(Stage(place.env))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, jobs: Sequence[Job], rounds: int, say: Say) -> list[Row]:
        """Every job; in each round every place, the first one twice if there are several rounds."""
        places = [(place, place.backend) for place in self._places]
        if rounds > 1:
            places.append((self._places[0], self._places[0].backend + AGAIN))
        return [row for job in jobs for row in self._job(job, places, rounds, say)]

    def _job(self, job: Job, places: list[tuple[Place, str]], rounds: int, say: Say) -> Iterator[Row]:
        what = "latency" if job.streams else "throughput"
        rows = {(name, label): Row(what, name, label) for name in job.rows for _, label in places}
        for number in range(rounds):
            for place, label in places if number % 2 == 0 else places[::-1]:  # who comes first changes with the rounds
                say(f"{what}, {job.name}, {label}" + (f", round {number + 1} of {rounds}" if rounds > 1 else ""))
                try:
                    found = self._once(job, place)
                except (VoidError, WorkerError) as error:
                    for name in job.rows:
                        rows[name, label].runs.append(None)
                        rows[name, label].voids.append(str(error).strip().splitlines()[-1])
                    continue
                for name in job.rows:
                    rows[name, label].add(found[name])
        return iter(rows.values())

    def _once(self, job: Job, place: Place) -> dict[str, Figures]:
        if len(job.streams) > 1:
            found = together(place.env, job.streams, self._seconds, fresh_topic(), self._loop)
            return {f"{job.name}: {name}": figures for name, figures in found.items()}
        stage = self._stages[place.backend]
        if job.streams:
            return {job.name: latency(stage, job.streams[0], self._seconds, fresh_topic(), self._loop)}
        return {job.name: throughput(stage, job.size, self._seconds, fresh_topic(), self._loop)}

    def curves(self, seconds: float, most_seconds: float, say: Say) -> dict[str, Any]:
        """Latency by rate and throughput by size of each place, within about ``most_seconds``."""
        publisher, subscriber = sides(self._loop)
        pairs = {
            name: Pair(publisher, subscriber, stage, lambda _: fresh_topic()) for name, stage in self._stages.items()
        }
        begun = time.monotonic()
        rates = by_rate(pairs, RATES, seconds, begun + most_seconds * 0.6, say)
        return {"rate": rates, "size": by_size(pairs, SIZES, seconds, begun + most_seconds, say)}


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any], figure: str) -> tuple[float, float, float] | None:
    """Median, lowest and highest ratio of a figure, each within one round; ``None`` if no round has both."""
    found = [
        a[figure] / b[figure] for a, b in zip(ours["runs"], theirs["runs"], strict=True) if a and b and b[figure] > 0
    ]
    return (median(found), min(found), max(found)) if found else None
