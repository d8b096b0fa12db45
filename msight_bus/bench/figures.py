"""What a run comes to: rates, shares of a processor, percentiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from msight_bus.bench.jobs import Received, Sent
from msight_bus.bench.usage import Mark

PERCENTILES = {
    "min": 0.0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999,
    "max": 1.0,
}  # fmt: skip
"""Share of the messages by the name of a percentile."""

TOLD = ("p50", "p90", "p99", "p99.9", "max")
"""Those that tables show; plots show all."""

Figures = dict[str, float]
"""Figures of one run by name; times in microseconds."""


def between(first: Mark, last: Mark, peak: int, size: int) -> Figures:
    """Throughput between two marks of one process."""
    count = last.messages - first.messages
    seconds = max(1, last.at - first.at) / 1e9
    return {
        "rate": count / seconds,
        "bytes_rate": count * size / seconds,
        "cpu_us": (last.cpu - first.cpu) / max(1, count) * 1e6,
        "peak_bytes": float(peak),
        "messages": float(count),
    }


def of_subscriber(received: Received, size: int) -> Figures:
    """What a subscriber counted."""
    return between(received.first, received.last, received.peak, size)


def of_publisher(sent: Sent, size: int) -> Figures:
    """What a publisher had confirmed."""
    return between(sent.first, sent.confirmed, sent.peak, size)


def percentiles(nanoseconds: Sequence[int], names: Iterable[str] = PERCENTILES, prefix: str = "") -> Figures:
    """Percentiles in microseconds; the nearest rank, so each is a value that was seen."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {prefix + name: ordered[min(last, int(len(ordered) * PERCENTILES[name]))] / 1e3 for name in names}


def of_latency(sent: Sent, received: Received, size: int) -> Figures:
    """One-way latency from the intended time of sending, and the sender's own slip."""
    spent = of_subscriber(received, size)
    return {
        **percentiles(received.latencies),
        **percentiles(sent.slips, TOLD, "slip_"),
        "samples": float(len(received.latencies)),
        "cpu_us": spent["cpu_us"],
        "peak_bytes": spent["peak_bytes"],
    }


def is_disturbed(latency: Figures) -> bool:
    """Whether the sender's slip is above a tenth of the latency: then the machine was measured, not the bus."""
    return latency["slip_p50"] > latency["p50"] / 10


def summary(runs: Sequence[Figures]) -> dict[str, Any]:
    """The median of each figure over runs, with the lowest and the highest."""
    return {
        name: {"median": median(values), "min": min(values), "max": max(values)}
        for name in runs[0]
        for values in [[run[name] for run in runs]]
    }


def record(labels: Mapping[str, Any], runs: Sequence[Figures | None], voids: list[str], disturbed: list[int]) -> Any:
    """A row of a result file: what was measured, the figures of each round, and what is to be doubted."""
    good = [run for run in runs if run is not None]
    found = summary(good) if good else None
    return {**labels, "summary": found, "runs": runs, "voids": voids, "disturbed": disturbed}
