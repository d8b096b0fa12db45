"""The plots that reports share, from the rows and curves of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msight_bus.bench.axes import bytes_text, count_text, largest_share, log_axis, percentile_axis, size_axis, time_text
from msight_bus.bench.figures import PERCENTILES
from msight_bus.bench.page import note, table
from msight_bus.bench.plot import COLOURS, Bar, Series, bars, lines

Named = Sequence[tuple[str, Mapping[str, Any]]]
Curves = Mapping[str, Mapping[str, Any]]

_COLOURS = {
    "FastStream": "framework",
    "ceiling in runs": "plain",
    "bus on asyncio": "asyncio",
}


def colour(name: str) -> str:
    """The colour of a candidate or a backend."""
    if name.endswith(" again"):
        return "again"
    known = _COLOURS.get(name, name)
    return known if known in COLOURS else "plain"


def latency_distribution(rows: Named, what: str) -> str:
    """Latency (log scale) by percentile, a line a row; each ends at its slowest message."""
    series = []
    for name, row in rows:
        found = row["summary"]
        if found is None:
            continue
        end = largest_share(found["samples"]["median"])
        shares = {one: share for one, share in PERCENTILES.items() if one in found and share < end}
        shares["max"] = end
        series.append(
            Series(
                name + " *" * bool(row["disturbed"]),
                colour(name),
                [(share, found[one]["median"]) for one, share in shares.items()],
                [(found[one]["min"], found[one]["max"]) for one in shares],
                dashed=name.endswith("again"),
            )
        )
    values = [value for one in series for spread in one.spread for value in spread]
    samples = max((row["summary"]["samples"]["median"] for _, row in rows if row["summary"]), default=1.0)
    return lines(
        percentile_axis(samples),
        log_axis("one-way latency (log scale)", values, time_text),
        series,
        f"latency of {what}",
    )


def latency_by_rate(curves: Curves) -> str:
    """Median and p99 (log scale) against the rate; hollow where the rate was not held."""
    parts = []
    for figure in ("p50", "p99"):
        series = [
            Series(
                name,
                colour(name),
                [(point["rate"], point[figure]) for point in curve["points"]],
                open_end=bool(curve["points"]) and curve["saturated"],
            )
            for name, curve in curves.items()
        ]
        points = [point for one in series for point in one.points]
        x = log_axis("messages a second that were sent (log scale)", [a for a, _ in points], count_text)
        y = log_axis(f"{figure} of one-way latency (log scale)", [b for _, b in points], time_text)
        parts.append(lines(x, y, series, f"{figure} of latency against rate"))
    return "".join(parts)


def throughput_by_size(curves: Curves) -> str:
    """Messages and megabytes a second (log scale) against the size."""
    parts = []
    for figure, title, factor in (("rate", "messages a second", 1.0), ("bytes_rate", "megabytes a second", 1e-6)):
        series = [
            Series(name, colour(name), [(point["size"], point[figure] * factor) for point in curve["points"]])
            for name, curve in curves.items()
        ]
        points = [point for one in series for point in one.points]
        x = size_axis([int(a) for a, _ in points] or [1])
        parts.append(
            lines(
                x, log_axis(f"{title} (log scale)", [b for _, b in points], count_text), series, f"{title} against size"
            )
        )
    return "".join(parts)


def rate_bars(rows: Named) -> str:
    """Messages a second from zero, with the lowest and the highest round."""
    found = [(name, row["summary"]["rate"]) for name, row in rows if row["summary"] is not None]
    return bars(
        [
            Bar(name, colour(name), rate["median"], rate["min"], rate["max"], f"{rate['median']:,.0f}/s")
            for name, rate in found
        ],
        "messages a second",
    )


def rate_table(curves: Curves) -> str:
    """p50 / p99 by rate, and why each curve ends."""
    asked = sorted({point["rate"] for curve in curves.values() for point in curve["points"]})
    rows = []
    for name, curve in curves.items():
        at = {point["rate"]: f"{point['p50']:,.0f} / {point['p99']:,.0f}" for point in curve["points"]}
        rows.append([name, *(at.get(rate, "") for rate in asked)])
    hollow = "A hollow mark is a rate that was not held, or at which messages queued up. "
    marked = any(curve["saturated"] for curve in curves.values())
    below = hollow * marked + _ends(curves)
    return table(["p50 / p99, µs", *(f"{count_text(rate)}/s" for rate in asked)], rows, "bus") + (
        note(below) if below else ""
    )


def size_table(curves: Curves) -> str:
    """Messages a second by size."""
    sizes = sorted({point["size"] for curve in curves.values() for point in curve["points"]})
    rows = []
    for name, curve in curves.items():
        at = {point["size"]: f"{point['rate']:,.0f}" for point in curve["points"]}
        rows.append([name, *(at.get(size, "") for size in sizes)])
    below = _ends(curves)
    return table(["messages/s", *(bytes_text(int(size)) for size in sizes)], rows, "bus") + (
        note(below) if below else ""
    )


def _ends(curves: Curves) -> str:
    """Why curves end where they do."""
    ends = [f"{name}: {curve['end']}" for name, curve in curves.items() if curve["end"]]
    return f"The curves end: {'; '.join(ends)}." if ends else ""
