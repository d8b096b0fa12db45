"""Print a result as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Any

from rich.console import Console

from benchmarks.targets import Verdict, comparisons, undecidable, verdicts
from msight_bus.bench.machine import in_words
from msight_bus.cli.tables import Column, print_table

Rows = list[Sequence[str]]
Measured = list[Any]
"""The measurements of a backend in a result file."""

_LATE = "* in some rounds the sender was late by more than a tenth of the latency; see `disturbed`"
_PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
_THROUGHPUT = ("msg/s", "spread", "MB/s", "CPU us/msg", "peak MB", "rounds", "void")
_IDLE = ("topics", "opened in s", "connections", "requests/s", "for metadata", "its bytes/s", "CPU", "peak MB")
_CURVES = {
    "rate": ("latency by rate, us, 1 KiB", ("p50", "p99")),
    "size": ("messages a second by size, B", ("rate",)),
}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the targets, those that are not reached first, then the figures of each backend."""
    say(console, in_words(result["machine"]))
    say(console, ", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    judged = list(verdicts(result))
    missed = [verdict for verdict in judged if verdict.state == "FAIL"]
    ratios(console, "Not reached: bus / reference, medians of rounds", missed)
    ratios(console, "Other targets", [verdict for verdict in judged if verdict.state != "FAIL"])
    omitted = [f"{verdict.backend} {verdict.title}" for verdict in undecidable(result)]
    if omitted:
        say(console, f"\nLeft out, because the A/A band is wider than the margin: {'; '.join(omitted)}.")
    ratios(console, "Comparisons without a target", comparisons(result))
    for backend, measured in result["backends"].items():
        stand_in = " - a stand-in, not Apache Kafka" if measured["is_stand_in"] else ""
        title = f"{backend}: {measured['broker']} {measured['version']}{stand_in}"
        if "problem" in measured:
            say(console, f"{backend}: {measured['problem']}")
        rows = measured["measurements"]
        latency_titles = (*_PERCENTILES, "rounds", "p50 spread", "slip p50", "slip p99", "CPU us")
        table(console, f"{title}: latency, us, 1 KiB at 1,000/s", latency_titles, latencies(rows))
        if any(row["disturbed"] for row in rows):
            say(console, _LATE)
        table(console, f"{title}: throughput", _THROUGHPUT, throughputs(rows))
        memory_titles = ("idle", "peak above idle", "queue's bound", "messages", "dropped")
        table(console, f"{title}: memory, MB, 128 KiB", memory_titles, memory(rows))
        table(console, f"{title}: many idle topics on one bus", _IDLE, idle(rows))
        for row in rows:
            for why, number in Counter(row["voids"]).items():
                say(console, f"void, {number} x: {row['what']} {row['size']:,} B {row['candidate']}: {why}")
        for what, found in measured.get("curves", {}).items():
            curves(console, title, what, found)


def say(console: Console, text: str) -> None:
    """Print a line."""
    console.print(text, markup=False, soft_wrap=True)


def table(console: Console, title: str, titles: Sequence[str], rows: Rows) -> None:
    """Print a table with rows, whose first column has no title; on a narrow terminal the last columns are omitted."""
    if rows:
        console.print(f"\n{title}", style="bold", markup=False, soft_wrap=True)
        columns = [Column("", folds_at=20, left=True), *(Column(name, rank) for rank, name in enumerate(titles, 1))]
        print_table(columns, rows, console)


def latencies(rows: Measured) -> Rows:
    """One-way latency by candidate, in microseconds: medians over rounds."""
    made: Rows = []
    for row in rows:
        found = row["summary"]
        if row["what"] != "latency":
            continue
        if found is None:
            made.append([row["candidate"], *["-"] * 5, "void", *["-"] * 4])
            continue
        made.append(
            [
                row["candidate"] + (" *" if row["disturbed"] else ""),
                *(f"{found[name]['median']:,.0f}" for name in _PERCENTILES),
                f"{len(row['runs'])}",
                f"{found['p50']['min']:,.0f}-{found['p50']['max']:,.0f}",
                *(
                    f"{found[name]['median']:,.0f}" if name in found else ""
                    for name in ("slip_p50", "slip_p99", "cpu_us")
                ),
            ]
        )
    return made


def throughputs(rows: Measured) -> Rows:
    """Messages a second by candidate: medians and spread over rounds."""
    made: Rows = []
    for row in rows:
        found = row["summary"]
        if row["what"] not in ("subscribe", "publish", "topics"):
            continue
        name = f"{row['what']} {row['size']:,} B {row['candidate']}"
        if found is None:
            made.append([name, *["-"] * 5, "0", f"{len(row['voids'])}"])
            continue
        scaled = (("bytes_rate", 1e-6, 0), ("cpu_us", 1.0, 2), ("peak_bytes", 1e-6, 0))
        made.append(
            [
                name,
                f"{found['rate']['median']:,.0f}",
                f"{found['rate']['min']:,.0f}-{found['rate']['max']:,.0f}",
                *(f"{found[key]['median'] * factor:,.{n}f}" if key in found else "" for key, factor, n in scaled),
                f"{sum(run is not None for run in row['runs'])}",
                f"{len(row['voids'])}" if row["voids"] else "",
            ]
        )
    return made


def memory(rows: Measured) -> Rows:
    """Print the peak of resident memory above idle, of a process whose other side does not keep up."""
    made: Rows = []
    for row in rows:
        found = row["summary"]
        if row["what"] != "memory":
            continue
        if found is None:
            made.append([row["candidate"], *["-"] * 4, "void"])
            continue
        sizes = (
            f"{found[name]['median'] / 1e6:,.1f}" if name in found else ""
            for name in ("idle_bytes", "above_bytes", "bound_bytes")
        )
        messages = found["received" if "received" in found else "accepted"]["median"]
        dropped = f"{found['dropped']['median']:,.0f}" if "dropped" in found else ""
        made.append([row["candidate"], *sizes, f"{messages:,.0f}", dropped])
    return made


def idle(rows: Measured) -> Rows:
    """Print the cost of many topics on one bus while nothing is published."""
    names = ("topics", "open_seconds", "connections", "requests_rate", "metadata_rate", "metadata_bytes_rate")
    made: Rows = []
    for row in rows:
        found = row["summary"]
        if row["what"] != "idle":
            continue
        if found is None:
            made.append([row["candidate"], *["-"] * 7, "void"])
            continue
        figures = (f"{found[name]['median']:,.0f}" for name in names)
        peak = (found["idle_bytes"]["median"] + found["above_bytes"]["median"]) / 1e6
        made.append([row["candidate"], *figures, f"{found['cpu_share']['median']:.0%}", f"{peak:,.0f}"])
    return made


def curves(console: Console, title: str, what: str, found: Mapping[str, Any]) -> None:
    """Print latency by rate or throughput by size, and why the curve of a candidate ends."""
    places = sorted({point[what] for curve in found.values() for point in curve["points"]})
    name_of, figures = _CURVES[what]
    rows: Rows = []
    for name, curve in found.items():
        for figure in figures:
            at = {point[what]: f"{point[figure]:,.0f}" for point in curve["points"]}
            rows.append([f"{name} {figure}" if len(figures) > 1 else name, *(at.get(place, "") for place in places)])
    table(console, f"{title}: {name_of}", [f"{place:,.0f}" for place in places], rows)
    for name, curve in found.items():
        if curve["end"]:
            say(console, f"the curve of {name} ends: {curve['end']}")


def ratios(console: Console, title: str, found: Iterable[Verdict]) -> None:
    """Print a row for each ratio, and for a target whether it was reached."""
    titles = ("ratio", "target", "verdict", "spread", "A/A", "bus", "reference", "rounds")
    table(console, title, titles, [[f"{verdict.backend} {verdict.title}", *cells(verdict)] for verdict in found])


def cells(verdict: Verdict) -> list[str]:
    """Return the columns of a row after its title."""
    target = "" if isnan(verdict.bound) else (">= " if verdict.at_least else "<= ") + f"{verdict.bound:.2f}"
    band = f"{verdict.band[0]:.2f}-{verdict.band[1]:.2f}" if verdict.band else ""
    if not verdict.rounds:
        return ["-", target, verdict.state, "-", band, "-", "-", "0"]
    return [
        f"{verdict.ratio:.2f}",
        target,
        verdict.state,
        f"{verdict.low:.2f}-{verdict.high:.2f}",
        band,
        f"{verdict.bus:,.0f}",
        f"{verdict.reference:,.0f}",
        f"{verdict.rounds}",
    ]
