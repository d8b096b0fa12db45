"""Charts of a result: latency by percentile and by rate, throughput by size and by candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from benchmarks.catalog import AGAIN, BUS
from msight_bus.bench.figures import PERCENTILES

Named = Sequence[tuple[str, Mapping[str, Any]]]
"""Rows of a result file by name."""

Curves = Mapping[str, Mapping[str, Any]]

_NINES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def latency(rows: Named) -> Figure:
    """Draw the latency by percentile, p90, p99 and p99.9 equally spaced, with bars from the lowest to the highest round."""
    figure, (axes,) = _figure(1, "percentile of the messages", "one-way latency, µs")
    most = max((row["summary"]["samples"]["median"] for _, row in rows if row["summary"]), default=1.0)
    for name, row in rows:
        found = row["summary"]
        if found is None:
            continue
        shares = {one: share for one, share in PERCENTILES.items() if one in found and share < _last(found)}
        places = [_nines(share) for share in shares.values()] + [_nines(_last(found))]
        figures = [found[one] for one in (*shares, "max")]
        spread = [[one["median"] - one["min"] for one in figures], [one["max"] - one["median"] for one in figures]]
        late = " *" if row["disturbed"] else ""
        axes.errorbar(
            places, [one["median"] for one in figures], spread, label=name + late, elinewidth=0.6, **_style(name)
        )
    ticks = {one: _nines(share) for one, share in _NINES.items() if share < 1 - 1 / max(2.0, most)}
    axes.set_xscale("linear")
    axes.set_xticks(list(ticks.values()), list(ticks))
    return _finished(figure)


def _last(found: Mapping[str, Any]) -> float:
    """Return the share of the messages that were faster than the slowest."""
    return 1 - 1 / max(10.0, found["samples"]["median"])


def _nines(share: float) -> float:
    return -math.log10(1 - share)


def by_rate(curves: Curves) -> Figure:
    """Draw the median and p99 of the latency by rate; the last point of a saturated curve is hollow."""
    figure, axes = _figure(2, "messages a second", "p50 of latency, µs", "p99 of latency, µs")
    for each, percentile in zip(axes, ("p50", "p99"), strict=True):
        for name, curve in curves.items():
            points = [(point["rate"], point[percentile]) for point in curve["points"]]
            (line,) = each.plot(*zip(*points, strict=True), label=name, **_style(name)) if points else (None,)
            if line is not None and curve["saturated"]:
                each.plot(*points[-1], marker="o", markersize=9, markerfacecolor="white", color=line.get_color())
    return _finished(figure)


def by_size(curves: Curves) -> Figure:
    """Draw the throughput by size, in messages and in megabytes."""
    figure, axes = _figure(2, "bytes of a message", "messages a second", "MB a second")
    for each, (name_of, factor) in zip(axes, (("rate", 1.0), ("bytes_rate", 1e-6)), strict=True):
        for name, curve in curves.items():
            points = [(point["size"], point[name_of] * factor) for point in curve["points"]]
            if points:
                each.plot(*zip(*points, strict=True), label=name, **_style(name))
    return _finished(figure, "lower left")


def rates(rows: Named) -> Figure:
    """Draw the messages a second of each row, with the lowest and the highest round."""
    found = [(name, row["summary"]["rate"]) for name, row in reversed(rows) if row["summary"] is not None]
    figure = Figure(figsize=(9, 0.8 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    spread = [[rate["median"] - rate["min"] for _, rate in found], [rate["max"] - rate["median"] for _, rate in found]]
    bars = axes.barh([name for name, _ in found], [rate["median"] for _, rate in found], xerr=spread, color="#9db7c9")
    axes.bar_label(bars, [f"{rate['median']:,.0f}" for _, rate in found], padding=6)
    axes.set_xlabel("messages a second")
    axes.margins(x=0.15)
    return figure


def _figure(number: int, x: str, *y: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    made = [figure.add_subplot(1, number, place + 1) for place in range(number)]
    for axes, title in zip(made, y, strict=True):
        axes.set(xlabel=x, ylabel=title, xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):  # few ticks with plain labels: minor ticks take half of the drawing time
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter(EngFormatter(sep=""))
            axis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    return figure, made


def _style(name: str) -> dict[str, Any]:
    ours, again = name == BUS, name == AGAIN
    return {"marker": "o", "markersize": 4, "linewidth": 2.4 if ours else 1.2, "linestyle": "--" if again else "-"}


def _finished(figure: Figure, free: str = "upper left") -> Figure:
    """Place the legend in the corner that is free: matplotlib's search takes a second of processor time, or is a warning."""
    for axes in figure.axes[:1]:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", loc=free)
    return figure
