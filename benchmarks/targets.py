"""The figures to reach, and what a result says about each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.catalog import AGAIN, BUS, CEILING, CLIENT, FRAMEWORK, PLAIN
from benchmarks.scale import LARGE, MIDDLE, SMALL

Bounds = Mapping[str, float]
LATENCY_SIZE = 1024
BAND = 0.0
"""A bound that is the A/A band itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """A row of the table: the bus's figure over a reference's figure.

    Attributes:
        what: kind of measurement.
        size: payload bytes.
        against: the reference.
        figure: its name; rates have to be above the bound, times below it.
        bounds: by backend; a backend without one has no such row.
    """

    what: str
    size: int
    against: str
    figure: str
    bounds: Bounds

    @property
    def title(self) -> str:
        """In words."""
        size = {SMALL: "128 B", MIDDLE: "128 KiB", LARGE: "1 MB", LATENCY_SIZE: "1 KiB"}[self.size]
        figure = f" {self.figure}" if self.what == "latency" else ""
        return f"{self.what} {size}{figure} / {self.against}"


def _same(bound: float) -> Bounds:
    return {"redis": bound, "nats": bound, "kafka": bound}


TARGETS = (
    *(
        Target("latency", LATENCY_SIZE, CEILING, figure, {"redis": 1.15, "nats": 1.15, "kafka": BAND})
        for figure in ("p50", "p99")
    ),
    *(
        Target("latency", LATENCY_SIZE, peer, figure, _same(1.0))
        for peer in (CLIENT, FRAMEWORK)
        for figure in ("p50", "p99")
    ),
    Target("subscribe", SMALL, CEILING, "rate", _same(0.7)),
    Target("subscribe", SMALL, PLAIN, "rate", {"redis": 0.7, "nats": 0.7}),
    Target("subscribe", SMALL, CLIENT, "rate", {"redis": 3, "nats": 5, "kafka": 1.3}),
    Target("subscribe", SMALL, FRAMEWORK, "rate", {"redis": 30, "nats": 15, "kafka": 5}),
    Target("publish", SMALL, CEILING, "rate", {"redis": 0.6, "nats": 0.6, "kafka": 0.5}),
    Target("publish", SMALL, CLIENT, "rate", {"redis": 4, "nats": 1.2, "kafka": 2}),
    *(
        Target(what, size, CEILING, "rate", {"redis": 0.85, "nats": 0.9, "kafka": 0.9})
        for size in (MIDDLE, LARGE)
        for what in ("subscribe", "publish")
    ),
)

NOT_MEASURED = ("1 000 topics, 1 000 consumer tasks on one bus",)
"""Rows of the table that this benchmark does not have yet."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a result says about a target.

    Attributes:
        backend: which.
        title: the row.
        bus: median figure of the bus.
        reference: median figure of the reference.
        ratio: median over rounds of the bus's figure by the reference's of the same round.
        low: smallest ratio of a round.
        high: largest ratio of a round.
        bound: what the ratio is held against.
        band: the A/A band, for latencies.
        state: ``pass``, ``FAIL``; ``disturbed`` and ``no result`` decide nothing.
        rounds: that went into it.
    """

    backend: str
    title: str
    bus: float
    reference: float
    ratio: float
    low: float
    high: float
    bound: float
    at_least: bool
    band: tuple[float, float] | None
    state: str
    rounds: int


def verdicts(result: Mapping[str, Any]) -> Iterator[Verdict]:
    """Each target of each backend in a result file."""
    for backend, measured in result["backends"].items():
        found = {(m["what"], m["size"], m["candidate"]): m for m in measured["measurements"]}
        for target in TARGETS:
            if backend in target.bounds and (target.what, target.size, BUS) in found:
                yield _judge(backend, target, found)


def _pairs(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, figure: str) -> list[tuple[float, float]]:
    """The figures of both in the rounds in which both ran undisturbed; if there is none, in which both ran."""
    if ours is None or theirs is None:
        return []
    both = [
        (number, (a[figure], b[figure]))
        for number, (a, b) in enumerate(zip(ours["runs"], theirs["runs"], strict=False))
        if a is not None and b is not None and b[figure] > 0
    ]
    late = {*ours["disturbed"], *theirs["disturbed"]}
    return [pair for number, pair in both if number not in late] or [pair for _, pair in both]


def _is_late(row: Mapping[str, Any], figure: str) -> bool:
    """Whether the sender's slip at this percentile is above a tenth of the latency there, in the median of rounds."""
    return median(run.get(f"slip_{figure}", 0.0) / run[figure] for run in row["runs"] if run is not None) > 0.1


def _judge(backend: str, target: Target, found: Mapping[tuple[str, int, str], Any]) -> Verdict:
    ours, theirs = (found.get((target.what, target.size, name)) for name in (BUS, target.against))
    at_least = target.figure == "rate"
    bound = target.bounds[backend]
    band = None
    if target.what == "latency":
        again = found.get((target.what, target.size, AGAIN))
        noise = [a / b for a, b in _pairs(again, found.get((target.what, target.size, CEILING)), target.figure)]
        band = (min(noise), max(noise)) if noise else None
        if bound == BAND:
            bound = max(1.0, band[1]) if band else 1.0
    pairs = _pairs(ours, theirs, target.figure)
    nothing = (0.0, 0.0, 0.0, 0.0, 0.0)
    if not pairs or ours is None or theirs is None:
        return Verdict(backend, target.title, *nothing, bound, at_least, band, "no result", 0)
    ratios = [a / b for a, b in pairs]
    ratio = median(ratios)
    reached = ratio >= bound if at_least else ratio <= bound
    late = {*ours["disturbed"], *theirs["disturbed"]}
    disturbed = (target.what == "latency" and any(_is_late(row, target.figure) for row in (ours, theirs))) or late >= {
        n for n, (a, b) in enumerate(zip(ours["runs"], theirs["runs"], strict=False)) if a and b
    }
    return Verdict(
        backend,
        target.title,
        median(a for a, _ in pairs),
        median(b for _, b in pairs),
        ratio,
        min(ratios),
        max(ratios),
        bound,
        at_least,
        band,
        "disturbed" if disturbed else "pass" if reached else "FAIL",
        len(pairs),
    )
