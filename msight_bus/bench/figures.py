"""The figures of a run: rates, processor time, percentiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msight_bus.bench.jobs import Received, Sent
from msight_bus.bench.usage import Mark

PERCENTILES = {
    "min": 0.0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999,
    "max": 1.0,
}  # fmt: skip
"""Share of the messages by the name of a percentile."""

SHOWN = ("p50", "p90", "p99", "p99.9", "max")
"""Percentiles in tables."""

Figures = dict[str, float]
"""Figures of one run by name; times in microseconds."""


def between(first: Mark, last: Mark, peak: int, size: int) -> Figures:
    """Return the throughput between two marks of one process."""
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
    """Return the throughput that a subscriber counted."""
    return between(received.first, received.last, received.peak, size)


def of_publisher(sent: Sent, size: int) -> Figures:
    """Return the throughput that the broker confirmed to a publisher."""
    return between(sent.first, sent.confirmed, sent.peak, size)


def percentiles(nanoseconds: Sequence[int], names: Iterable[str] = PERCENTILES, prefix: str = "") -> Figures:
    """Return percentiles in microseconds by nearest rank, so that each is a measured value."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {prefix + name: ordered[min(last, int(len(ordered) * PERCENTILES[name]))] / 1e3 for name in names}


def of_latency(sent: Sent, received: Received, size: int) -> Figures:
    """Return the one-way latency from the intended time of sending, and the delay of the sender itself (slip)."""
    spent = of_subscriber(received, size)
    return {
        **percentiles(received.latencies),
        **percentiles(sent.slips, SHOWN, "slip_"),
        "samples": float(len(received.latencies)),
        "cpu_us": spent["cpu_us"],
        "peak_bytes": spent["peak_bytes"],
    }


def is_disturbed(latency: Figures) -> bool:
    """Return whether the sender's slip exceeds a tenth of the latency: then the machine was too busy for the measurement."""
    return latency["slip_p50"] > latency["p50"] / 10
