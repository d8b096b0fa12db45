"""What was measured, as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from msight_bus.bench.figures import TOLD
from msight_bus.bench.own_report import comparison, is_late, label

_LATE = "* The sender was late by more than a tenth of the latency: the machine is too busy to tell."


def show(result: Mapping[str, Any], out: Console) -> None:
    """All tables of a result, with the meaning of what is not plain."""
    rows = result["measurements"]
    late = [row for row in rows if row["what"] == "latency"]
    if late:
        out.print(_latencies(late))
        if any(is_late(row) for row in late):
            out.print(_LATE)
    rates = [row for row in rows if row["what"] == "throughput"]
    if rates:
        out.print(_rates(rates))
        out.print("us: processor time a message of each side; peak: resident memory of the larger one.")
    for row in rows:
        for why in row["voids"]:
            out.print(f"void: {row['name']}, {row['backend']}: {why}", markup=False, soft_wrap=True)
    if any("again" in row["backend"] for row in rows):
        out.print(
            "Medians over rounds. The last column is the median ratio to the first backend, and its lowest and highest "
            "round; the line of `again` is that backend against itself, and ≈ marks a difference that is no larger: noise.",
        )
    for kind, curves in result.get("curves", {}).items():
        out.print(_curves(kind, curves))


def _latencies(rows: Sequence[Mapping[str, Any]]) -> Table:
    several = len({row["backend"] for row in rows}) > 1
    table = _table("one way, us", *TOLD, "slip p50", "slip p99", "messages", *(["p50 ratio"] if several else []))
    for row in rows:
        found = row["summary"]
        ratio = [comparison(row, rows, "p50")] if several else []
        if found is None:
            table.add_row(label(row), "void")
            continue
        cells = [f"{found[name]['median']:,.0f}" for name in (*TOLD, "slip_p50", "slip_p99")]
        count = sum(run["samples"] for run in row["runs"] if run is not None)
        table.add_row(label(row) + (" *" if is_late(row) else ""), *cells, f"{count:,.0f}", *ratio)
    return table


def _rates(rows: Sequence[Mapping[str, Any]]) -> Table:
    several = len({row["backend"] for row in rows}) > 1
    head = ("throughput", "msg/s", "MB/s", "publisher us", "subscriber us", "peak MB")
    table = _table(*head, *(["ratio"] if several else []))
    for row in rows:
        found = row["summary"]
        ratio = [comparison(row, rows, "rate")] if several else []
        if found is None:
            table.add_row(label(row), "void")
            continue
        peak = max(found["peak_bytes"]["median"], found["publisher_peak_bytes"]["median"])
        table.add_row(
            label(row),
            f"{found['rate']['median']:,.0f}",
            f"{found['bytes_rate']['median'] / 1e6:,.1f}",
            f"{found['publisher_cpu_us']['median']:,.2f}",
            f"{found['cpu_us']['median']:,.2f}",
            f"{peak / 1e6:,.0f}",
            *ratio,
        )
    return table


def _curves(kind: str, curves: Mapping[str, Any]) -> Table:
    head, figures = _CURVES[kind]
    table = _table(*head)
    for name, curve in curves.items():
        for point in curve["points"]:
            table.add_row(name, *figures(point))
        if curve["end"]:
            table.add_row(name, curve["end"])
    return table


_CURVES: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "rate": (
        ("latency by rate, 1 KiB", "msg/s asked", "came", "p50 us", "p99 us"),
        lambda point: [f"{point[name]:,.0f}" for name in ("rate", "held", "p50", "p99")],
    ),
    "size": (
        ("throughput by size", "bytes", "msg/s", "MB/s"),
        lambda point: [f"{point['size']:,.0f}", f"{point['rate']:,.0f}", f"{point['bytes_rate'] / 1e6:,.1f}"],
    ),
}


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
