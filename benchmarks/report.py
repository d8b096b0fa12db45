"""A result in tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.targets import Verdict, comparisons, verdicts
from msight_bus.bench.machine import in_words

_STYLES = {"pass": "green", "FAIL": "bold red", "disturbed": "yellow", "no result": "yellow", "no target": "dim"}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Figures of each backend, then the table of targets."""
    console.print(in_words(result["machine"]), markup=False)
    console.print(", ".join(f"{name} {number}" for name, number in result["versions"].items()), markup=False)
    for backend, measured in result["backends"].items():
        stand_in = " - a stand-in, not Apache Kafka" if measured["is_stand_in"] else ""
        title = f"{backend}: {measured['broker']} {measured['version']}{stand_in}"
        if "problem" in measured:
            console.print(f"{title}: {measured['problem']}", style="red", markup=False)
        rows = measured["measurements"]
        if rows:
            for make in (latencies, throughputs, memory, idle):
                if (table := make(title, rows)).rows:
                    console.print(table)
    console.print(ratios("Targets: bus / reference, medians of rounds", verdicts(result)))
    console.print(ratios("Comparisons without a target", comparisons(result)))


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if not number else "right", no_wrap=True)
    return table


def latencies(title: str, rows: list[Any]) -> Table:
    """One-way latency by candidate, in microseconds: medians over rounds."""
    names = ("p50", "p90", "p99", "p99.9", "max")
    table = _table(
        f"{title}: latency, us, 1 KiB at 1 000/s", "", *names, "p50 spread", "slip p50", "slip p99", "cpu", "rounds"
    )
    for row in rows:
        found = row["summary"]
        if row["what"] != "latency":
            continue
        if found is None:
            table.add_row(row["candidate"], *["-"] * 9, "void")
            continue
        table.add_row(
            row["candidate"] + (" *" if row["disturbed"] else ""),
            *(f"{found[name]['median']:,.0f}" for name in names),
            f"{found['p50']['min']:,.0f}-{found['p50']['max']:,.0f}",
            f"{found['slip_p50']['median']:,.0f}",
            f"{found['slip_p99']['median']:,.0f}",
            f"{found['cpu_us']['median']:.0f}",
            f"{len(row['runs'])}",
        )
    if any(row["disturbed"] for row in rows):
        table.caption = "* in some rounds the sender was late by more than a tenth of the latency; see `disturbed`"
    return table


def throughputs(title: str, rows: list[Any]) -> Table:
    """Messages a second by candidate: medians and spread over rounds."""
    table = _table(f"{title}: throughput", "", "msg/s", "spread", "MB/s", "cpu us/msg", "peak MB", "rounds", "void")
    for row in rows:
        found = row["summary"]
        if row["what"] not in ("subscribe", "publish", "topics"):
            continue
        name = f"{row['what']} {row['size']:,} B {row['candidate']}"
        if found is None:
            table.add_row(name, *["-"] * 5, "0", f"{len(row['voids'])}")
            continue
        table.add_row(
            name,
            f"{found['rate']['median']:,.0f}",
            f"{found['rate']['min']:,.0f}-{found['rate']['max']:,.0f}",
            f"{found['bytes_rate']['median'] / 1e6:,.0f}",
            f"{found['cpu_us']['median']:,.2f}",
            f"{found['peak_bytes']['median'] / 1e6:,.0f}",
            f"{sum(run is not None for run in row['runs'])}",
            f"{len(row['voids'])}" if row["voids"] else "",
        )
    return table


def memory(title: str, rows: list[Any]) -> Table:
    """Resident memory of a process whose other side does not keep up: the most, above what it had when idle."""
    names = ("idle_bytes", "above_bytes", "bound_bytes")
    table = _table(
        f"{title}: memory, MB, 128 KiB", "", "idle", "peak above idle", "queue's bound", "messages", "dropped"
    )
    for row in rows:
        found = row["summary"]
        if row["what"] != "memory":
            continue
        if found is None:
            table.add_row(row["candidate"], *["-"] * 4, "void")
            continue
        sizes = (f"{found[name]['median'] / 1e6:,.1f}" if name in found else "" for name in names)
        messages = found["received" if "received" in found else "accepted"]["median"]
        dropped = f"{found['dropped']['median']:,.0f}" if "dropped" in found else ""
        table.add_row(row["candidate"], *sizes, f"{messages:,.0f}", dropped)
    return table


def idle(title: str, rows: list[Any]) -> Table:
    """What many topics cost on one bus while nothing is published."""
    table = _table(
        f"{title}: many idle topics on one bus",
        "",
        "topics",
        "opened in s",
        "connections",
        "requests/s",
        "for metadata",
        "its bytes/s",
        "cpu",
        "peak MB",
    )
    names = ("topics", "open_seconds", "connections", "requests_rate", "metadata_rate", "metadata_bytes_rate")
    for row in rows:
        found = row["summary"]
        if row["what"] != "idle":
            continue
        if found is None:
            table.add_row(row["candidate"], *["-"] * 7, "void")
            continue
        figures = (f"{found[name]['median']:,.0f}" for name in names)
        peak = (found["idle_bytes"]["median"] + found["above_bytes"]["median"]) / 1e6
        table.add_row(row["candidate"], *figures, f"{found['cpu_share']['median']:.0%}", f"{peak:,.0f}")
    return table


def ratios(title: str, found: Iterable[Verdict]) -> Table:
    """A row for each ratio; for a target, whether it was reached."""
    table = _table(title, "", "bus", "reference", "ratio", "spread", "A/A", "target", "rounds", "")
    for verdict in found:
        table.add_row(f"{verdict.backend} {verdict.title}", *cells(verdict))
    return table


def cells(verdict: Verdict) -> list[str]:
    """The columns of a row behind its title."""
    target = "" if isnan(verdict.bound) else ("≥ " if verdict.at_least else "≤ ") + f"{verdict.bound:.2f}"
    band = f"{verdict.band[0]:.2f}-{verdict.band[1]:.2f}" if verdict.band else ""
    state = f"[{_STYLES[verdict.state]}]{verdict.state}[/]"
    if not verdict.rounds:
        return ["-", "-", "-", "-", band, target, "0", state]
    return [
        f"{verdict.bus:,.0f}",
        f"{verdict.reference:,.0f}",
        f"{verdict.ratio:.2f}",
        f"{verdict.low:.2f}-{verdict.high:.2f}",
        band,
        target,
        f"{verdict.rounds}",
        state,
    ]
