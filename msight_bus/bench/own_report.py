"""The result of `msight-bus bench` as a page with plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msight_bus.bench.compare import AGAIN, ratios
from msight_bus.bench.figures import TOLD
from msight_bus.bench.page import document, figure, note, origin, table
from msight_bus.bench.pictures import latency_by_rate, latency_distribution, rate_bars, rate_table, size_table
from msight_bus.bench.pictures import throughput_by_size as by_size_picture

Row = Mapping[str, Any]

LATE = "* In some rounds the sender was late by more than a tenth of the latency: the machine was too busy to tell."


def label(row: Row) -> str:
    """What a row is: the measurement and the backend."""
    return f"{row['name']}, {row['backend']}"


def is_late(row: Row) -> bool:
    """Whether some round's sender was late."""
    return bool(row["disturbed"])


def comparison(row: Row, rows: Sequence[Row], figure_name: str) -> str:
    """The ratio to the first backend in the same measurement; empty for that one itself.

    ``≈`` is before a ratio inside the A/A band, which is the span of that backend's ratios to itself, and 1.
    """
    peers = [other for other in rows if other["name"] == row["name"]]
    found = None if peers[0] is row else ratios(row, peers[0], figure_name)
    if found is None:
        return ""
    again = next((other for other in peers if other["backend"].endswith(AGAIN)), None)
    band = ratios(again, peers[0], figure_name) if again is not None and again is not row else None
    alike = "≈ " if band and min(1.0, *band) <= found[0] <= max(1.0, *band) else ""
    return f"{alike}{found[0]:.2f} ({found[1]:.2f}–{found[2]:.2f})"


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    return document(f"msight-bus bench, {result['started'][:10]}", _parts(result))


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    yield origin(result)
    brokers = ", ".join(f"{name}: {broker or 'your broker'}" for name, broker in result["backends"].items())
    spread = (
        f" Figures are medians over {result['rounds']} rounds; thin lines go from the lowest to the highest round."
        if result["rounds"] > 1
        else ""
    )
    yield note(f"Measured on {brokers}. Publisher and subscriber are two processes.{spread}")
    rows = result["measurements"]
    if any(row["backend"].endswith(AGAIN) for row in rows):
        yield note(
            "The ratio is to the first backend of the measurement, in the same round, with its lowest and highest round. "
            "“again” is the first backend against itself (A/A); “≈” marks a difference inside that band: it is noise."
        )
    for name in dict.fromkeys(row["name"] for row in rows if row["what"] == "latency"):
        yield from _latency(name, [row for row in rows if row["name"] == name])
    for name in dict.fromkeys(row["name"] for row in rows if row["what"] == "throughput"):
        yield from _throughput(name, [row for row in rows if row["name"] == name])
    curves = result.get("curves", {})
    if "rate" in curves:
        yield figure("Latency against rate, 1 KiB", latency_by_rate(curves["rate"]), rate_table(curves["rate"]))
    if "size" in curves:
        yield figure("Throughput against size", by_size_picture(curves["size"]), size_table(curves["size"]))


def _latency(name: str, rows: Sequence[Row]) -> Iterator[str]:
    named = [(row["backend"], row) for row in rows]
    head = ("µs", *TOLD, "sender's slip p50", "p50 ratio")
    cells = []
    for backend, row in named:
        found = row["summary"]
        if found is None:
            cells.append([backend, "no result"])
            continue
        values = [f"{found[one]['median']:,.0f}" for one in (*TOLD, "slip_p50")]
        cells.append([backend + " *" * is_late(row), *values, comparison(row, rows, "p50")])
    below = [table(head, cells), *_notes(rows)]
    yield figure(f"One-way latency: {name}", latency_distribution(named, name), *below)


def _throughput(name: str, rows: Sequence[Row]) -> Iterator[str]:
    head = ("", "messages/s", "MB/s", "CPU µs/message, publisher", "subscriber", "ratio")
    cells = []
    for row in rows:
        found = row["summary"]
        if found is None:
            cells.append([row["backend"], "no result"])
            continue
        cells.append(
            [
                row["backend"],
                f"{found['rate']['median']:,.0f}",
                f"{found['bytes_rate']['median'] / 1e6:,.1f}",
                f"{found['publisher_cpu_us']['median']:,.2f}",
                f"{found['cpu_us']['median']:,.2f}",
                comparison(row, rows, "rate"),
            ]
        )
    picture = rate_bars([(row["backend"], row) for row in rows])
    yield figure(f"Throughput: {name}", picture, table(head, cells), *_notes(rows))


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    if any(is_late(row) for row in rows):
        yield note(LATE)
    for row in rows:
        for why in row["voids"]:
            yield note(f"Void: {row['backend']}: {why}")
