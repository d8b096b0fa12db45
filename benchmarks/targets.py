"""The targets, and the verdict of a result on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isnan, nan
from statistics import median
from typing import Any

from benchmarks.catalog import (
    AGAIN,
    ASYNCIO,
    BUS,
    CEILING,
    CLIENT,
    CONFLUENT,
    CONFLUENT_TUNED,
    FRAMEWORK,
    MSIGHT,
    ONE_TOPIC,
    ROUND_ROBIN,
    RUNS,
    RUNS_OF_64,
    ZENOH,
    ZMQ,
)  # fmt: skip
from benchmarks.scale import LARGE, MIDDLE, SMALL

Bounds = Mapping[str, float]
Row = Mapping[str, Any]
"""A measurement in a result file."""

LATENCY_SIZE = 1024
BAND = 0.0
"""A bound that is the A/A band."""


@dataclass(frozen=True, slots=True)
class Target:
    """A row of the table: the ratio of a figure of the bus to that of a reference.

    Attributes:
        what: kind of measurement.
        size: payload bytes.
        against: the reference.
        figure: name of the figure; rates must be at least the bound, times at most.
        bounds: bounds by backend; a backend without a bound has no such row.
        ours: the compared candidate, usually the bus.
    """

    what: str
    size: int
    against: str
    figure: str
    bounds: Bounds
    ours: str = BUS

    @property
    def title(self) -> str:
        """Title of the row."""
        if self.what == "topics":
            return f"many topics, {self.ours} / {self.against}"
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
        Target("latency", LATENCY_SIZE, peer, figure, {"kafka": 1.0} if peer == CONFLUENT else _same(1.0))
        for peer in (CLIENT, FRAMEWORK, MSIGHT, CONFLUENT)
        for figure in ("p50", "p99")
    ),
    Target("subscribe", SMALL, CEILING, "rate", _same(0.7)),
    Target("subscribe", SMALL, RUNS, "rate", {"redis": 0.7, "nats": 0.7}),
    Target("subscribe", SMALL, CLIENT, "rate", {"redis": 3, "nats": 5, "kafka": 1.3}),
    Target("subscribe", SMALL, FRAMEWORK, "rate", {"redis": 30, "nats": 15, "kafka": 5}),
    Target("publish", SMALL, CEILING, "rate", {"redis": 0.6, "nats": 0.6, "kafka": 0.5}),
    Target("publish", SMALL, CLIENT, "rate", {"redis": 4, "nats": 1.2, "kafka": 2}),
    *(
        Target(what, size, CEILING, "rate", {"redis": 0.85, "nats": 0.9, "kafka": 0.9})
        for size in (MIDDLE, LARGE)
        for what in ("subscribe", "publish")
    ),
    Target("topics", SMALL, ONE_TOPIC, "rate", {"redis": 0.6, "nats": 0.6}, ROUND_ROBIN),
    Target("topics", SMALL, ONE_TOPIC, "rate", {"redis": 0.8, "nats": 0.8}, RUNS_OF_64),
)

COMPARISONS = (
    *(Target("latency", LATENCY_SIZE, ASYNCIO, figure, _same(nan)) for figure in ("p50", "p99")),
    Target("subscribe", SMALL, ASYNCIO, "rate", _same(nan)),
    *(Target(what, SMALL, MSIGHT, "rate", _same(nan)) for what in ("subscribe", "publish")),
    *(
        Target("latency", LATENCY_SIZE, peer, figure, {"redis": nan, "nats": nan})
        for peer in (ZMQ, ZENOH)
        for figure in ("p50", "p99")
    ),
    *(Target("latency", LATENCY_SIZE, CONFLUENT_TUNED, figure, {"kafka": nan}) for figure in ("p50", "p99")),
    *(Target(what, SMALL, CONFLUENT, "rate", {"kafka": nan}) for what in ("subscribe", "publish")),
)
"""Ratios without a target."""

_NOT_IN_EACH = (RUNS, MSIGHT, CONFLUENT, ZMQ, ZENOH)
"""References that a quick measurement omits, with their rows."""

_DISTURBED = 1.1
"""If the median of the A/A ratio differs from 1 by more than this factor, a row whose verdict this changes is disturbed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a result on a target.

    Attributes:
        backend: the backend.
        title: title of the row.
        bus: median figure of the bus.
        reference: median figure of the reference.
        ratio: median over rounds of the bus's figure by the reference's of the same round.
        low: smallest ratio of a round.
        high: largest ratio of a round.
        bound: bound of the ratio.
        band: the A/A band, ratios of the ceiling to itself without the lowest and highest fifth; ``None`` if not measured.
        state: ``pass``, ``FAIL``, or undecided: ``disturbed``, ``no result``; ``no target`` for comparisons.
        rounds: number of rounds.
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

    @property
    def is_undecidable(self) -> bool:
        """Whether this is a row of the 99th percentile whose A/A band is wider than the distance between ratio and bound."""
        if " p99 " not in self.title or not self.rounds or self.band is None:
            return False
        low, high = self.band
        return high - low > abs(self.ratio - self.bound)


def verdicts(result: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield the verdict on each target of each backend in a result file, without those of `undecidable`."""
    return (row for row in _rows(result, TARGETS) if not row.is_undecidable)


def undecidable(result: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield the rows of the 99th percentile whose A/A band is wider than the distance between ratio and bound."""
    return (row for row in _rows(result, TARGETS) if row.is_undecidable)


def comparisons(result: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield the ratios without a target in a result file, if both sides ran."""
    return (row for row in _rows(result, COMPARISONS) if row.rounds)


def _rows(result: Mapping[str, Any], targets: Iterable[Target]) -> Iterator[Verdict]:
    for backend, measured in result["backends"].items():
        found = {(m["what"], m["size"], m["candidate"]): m for m in measured["measurements"]}
        for target in targets:
            optional = target.against in _NOT_IN_EACH
            sides = (target.ours, target.against) if optional else (target.ours,)
            if backend in target.bounds and all((target.what, target.size, name) in found for name in sides):
                yield _judge(backend, target, found)


def _pairs(ours: Row | None, theirs: Row | None, figure: str) -> list[tuple[float, float]]:
    """Return the figures of both in the undisturbed rounds; if there are none, in all rounds in which both ran."""
    if ours is None or theirs is None:
        return []
    both = [
        (number, (a[figure], b[figure]))
        for number, (a, b) in enumerate(zip(ours["runs"], theirs["runs"], strict=False))
        if a is not None and b is not None and b[figure] > 0
    ]
    late = {*ours["disturbed"], *theirs["disturbed"]}
    return [pair for number, pair in both if number not in late] or [pair for _, pair in both]


def _is_late(row: Row, figure: str) -> bool:
    """Return whether the sender's slip exceeds a tenth of the latency at this percentile, in the median of rounds."""
    return median(run.get(f"slip_{figure}", 0.0) / run[figure] for run in row["runs"] if run is not None) > 0.1


def _never_undisturbed(ours: Row, theirs: Row) -> bool:
    late = {*ours["disturbed"], *theirs["disturbed"]}
    return late >= {n for n, (a, b) in enumerate(zip(ours["runs"], theirs["runs"], strict=False)) if a and b}


def _judge(backend: str, target: Target, found: Mapping[tuple[str, int, str], Row]) -> Verdict:
    def row(name: str) -> Row | None:
        return found.get((target.what, target.size, name))

    ours, theirs = row(target.ours), row(target.against)
    at_least = target.figure == "rate"
    noise = sorted(a / b for a, b in _pairs(row(AGAIN), row(CEILING), target.figure))
    outliers = len(noise) // 5
    band = (noise[outliers], noise[-1 - outliers]) if noise else None
    off = median(noise) if noise else 1.0
    bound = target.bounds[backend]
    if bound == BAND:
        bound, off = (max(1.0, band[1]) if band else 1.0), 1.0
    pairs = _pairs(ours, theirs, target.figure)
    nothing = (0.0, 0.0, 0.0, 0.0, 0.0)
    if not pairs or ours is None or theirs is None:
        return Verdict(backend, target.title, *nothing, bound, at_least, band, "no result", 0)
    ratios = [a / b for a, b in pairs]
    ratio = median(ratios)
    late = target.what == "latency" and any(_is_late(one, target.figure) for one in (ours, theirs))
    state = _state(ratio, bound, at_least, off)
    if state != "no target" and (late or _never_undisturbed(ours, theirs)):
        state = "disturbed"
    figures = (median(a for a, _ in pairs), median(b for _, b in pairs), ratio, min(ratios), max(ratios))
    return Verdict(backend, target.title, *figures, bound, at_least, band, state, len(pairs))


def _state(ratio: float, bound: float, at_least: bool, noise: float) -> str:
    """Return the state of a ratio; ``noise`` is the median of the A/A ratio."""
    if isnan(bound):
        return "no target"

    def reached(value: float) -> bool:
        return value >= bound if at_least else value <= bound

    off = max(noise, 1 / noise)
    if off > _DISTURBED and reached(ratio * off) != reached(ratio / off):
        return "disturbed"
    return "pass" if reached(ratio) else "FAIL"
