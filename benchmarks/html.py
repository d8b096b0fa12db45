"""A result as one self-contained HTML page: plots as inline SVG, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from benchmarks.catalog import BUS
from benchmarks.scale import SMALL
from benchmarks.targets import Row, Verdict, comparisons, verdicts
from msight_bus.bench.axes import bytes_text
from msight_bus.bench.figures import TOLD
from msight_bus.bench.page import document, figure, heading, note, origin, table
from msight_bus.bench.pictures import (
    latency_by_rate,
    latency_distribution,
    rate_bars,
    rate_table,
    size_table,
    throughput_by_size,
)

_LATE = "* In some rounds the sender was late by more than a tenth of the latency: those rounds decide nothing."
_LATENCY = "One-way latency, 1 KiB at 1 000 messages a second"


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    return document(f"msight-bus: benchmark of {result['started'][:10]}", _body(result))


def _body(result: Mapping[str, Any]) -> Iterator[str]:
    yield origin(result)
    brokers = {name: _broker(measured) for name, measured in result["backends"].items()}
    yield note(
        "Brokers: " + "; ".join(f"{name}: {broker}" for name, broker in brokers.items()) + ". Publisher and subscriber "
        "are two processes, rounds are interleaved, figures are medians over rounds, and thin lines go from the lowest to "
        "the highest round. Only ratios carry to another machine."
    )
    yield from _targets(result)
    yield from _overview(result)
    for name, measured in result["backends"].items():
        yield heading(f"{name}: {brokers[name]}")
        yield from _backend(measured)


def _broker(measured: Mapping[str, Any]) -> str:
    stand_in = ", a stand-in, not Apache Kafka" if measured["is_stand_in"] else ""
    return measured.get("problem") or f"{measured['broker']} {measured['version']}{stand_in}"


def _targets(result: Mapping[str, Any]) -> Iterator[str]:
    found = list(verdicts(result))
    yield heading("Targets")
    counted = {state: sum(one.state == state for one in found) for state in ("pass", "FAIL", "disturbed", "no result")}
    yield note(", ".join(f"{number} {state}" for state, number in counted.items() if number) + ".")
    yield note(
        "The ratio is the bus's figure to the reference's in the same round. A/A is the ceiling's ratio to itself: what "
        "differs by less is noise. “disturbed”: the machine was too busy to decide. In tables of latency, “slip” is how late "
        "the sender itself was, “CPU” the subscriber's processor time a message, and all times are microseconds."
    )
    head = ("the bus / the reference", "bus", "reference", "ratio", "rounds from–to", "A/A", "target", "")
    yield table(head, (_cells(one) for one in found))
    if other := [one for one in comparisons(result) if one.rounds]:
        yield figure("Comparisons without a target", "", table(head, (_cells(one) for one in other)))


def _cells(one: Verdict) -> list[str]:
    target = "" if isnan(one.bound) else f"{'≥' if one.at_least else '≤'} {one.bound:.2f}"
    band = f"{one.band[0]:.2f}–{one.band[1]:.2f}" if one.band else ""
    title = f"{one.backend}: {one.title}"
    state = "" if one.state == "no target" else one.state
    if not one.rounds:
        return [title, "", "", "", "", band, target, state]
    spread = f"{one.low:.2f}–{one.high:.2f}"
    return [title, f"{one.bus:,.0f}", f"{one.reference:,.0f}", f"{one.ratio:.2f}", spread, band, target, state]


def _overview(result: Mapping[str, Any]) -> Iterator[str]:
    """The bus alone, on each backend."""
    rows = [
        (name, row)
        for name, measured in result["backends"].items()
        for row in measured["measurements"]
        if row["what"] == "latency" and row["candidate"] == BUS
    ]
    if len(rows) > 1:
        yield heading("The bus on each backend")
        yield figure(_LATENCY, latency_distribution(rows, _LATENCY), _latencies(rows))
    for what, picture, below, title in _CURVES:
        ours = {
            name: measured["curves"][what][BUS] for name, measured in result["backends"].items() if "curves" in measured
        }
        if len(ours) > 1:
            yield figure(title, picture(ours), below(ours))


_CURVES = (
    ("rate", latency_by_rate, rate_table, "Latency against rate until saturation, 1 KiB"),
    ("size", throughput_by_size, size_table, "Throughput against size, from publisher to subscriber"),
)


def _backend(measured: Mapping[str, Any]) -> Iterator[str]:
    rows = measured["measurements"]
    titles = measured.get("candidates", {})
    yield table(("candidate", "what it is"), titles.items(), prose=True) if titles else ""
    late = _named(row for row in rows if row["what"] == "latency")
    if late:
        yield figure(_LATENCY, latency_distribution(late, _LATENCY), _latencies(late), *_notes(late))
    for what, picture, below, title in _CURVES:
        if what in measured.get("curves", {}):
            drawn = measured["curves"][what]
            yield figure(title, picture(drawn), below(drawn))
    rates = [row for row in rows if row["summary"] is None or "rate" in row["summary"]]
    for what, size in dict.fromkeys((row["what"], row["size"]) for row in rates if row["what"] != "latency"):
        named = _named(row for row in rates if (row["what"], row["size"]) == (what, size))
        if not any(row["summary"] for _, row in named):
            continue
        title = f"{_WHAT.get(what, what)}, {bytes_text(size)}"
        yield figure(title, rate_bars(named), _rates(named), *_notes(named))
    yield from _others([row for row in rows if row not in rates and row["what"] != "latency"])


_WHAT = {
    "subscribe": "Subscribing, fed with bytes made before",
    "publish": "Publishing, drained by a counter",
    "topics": "One topic and many",
}


def _named(rows: Iterable[Row]) -> list[tuple[str, Row]]:
    return [(row["candidate"], row) for row in rows]


def _latencies(rows: Sequence[tuple[str, Row]]) -> str:
    head = ("µs", *TOLD, "p50 from–to", "slip p50", "slip p99", "CPU", "rounds")
    return table(head, (_latency(name, row) for name, row in rows), BUS)


def _latency(name: str, row: Row) -> list[str]:
    found = row["summary"]
    if found is None:
        return [name, "no result"]
    values = [f"{found[one]['median']:,.0f}" for one in TOLD]
    spread = f"{found['p50']['min']:,.0f}–{found['p50']['max']:,.0f}"
    more = [f"{found[one]['median']:,.0f}" if one in found else "" for one in ("slip_p50", "slip_p99", "cpu_us")]
    return [name + " *" * bool(row["disturbed"]), *values, spread, *more, _rounds(row)]


def _rates(rows: Sequence[tuple[str, Row]]) -> str:
    head = ("", "messages/s", "from–to", "MB/s", "CPU µs a message", "peak MB", "rounds")
    return table(head, (_rate(name, row) for name, row in rows), BUS)


def _rate(name: str, row: Row) -> list[str]:
    found = row["summary"]
    if found is None:
        return [name, "no result"]
    rate = found["rate"]
    scaled = [
        f"{found[one]['median'] * factor:,.{digits}f}" if one in found else ""
        for one, factor, digits in (("bytes_rate", 1e-6, 1), ("cpu_us", 1.0, 2), ("peak_bytes", 1e-6, 0))
    ]
    return [name, f"{rate['median']:,.0f}", f"{rate['min']:,.0f}–{rate['max']:,.0f}", *scaled, _rounds(row)]


def _rounds(row: Row) -> str:
    return f"{sum(run is not None for run in row['runs'])}" + (f", {len(row['voids'])} void" if row["voids"] else "")


def _others(rows: Sequence[Row]) -> Iterator[str]:
    """What is neither a latency nor a rate, as a table of its figures."""
    for what in dict.fromkeys(row["what"] for row in rows):
        of_kind = [row for row in rows if row["what"] == what and row["summary"]]
        names = list(dict.fromkeys(name for row in of_kind for name in row["summary"]))
        cells = ([row["candidate"], *(_figure(row["summary"].get(name), name) for name in names)] for row in of_kind)
        yield figure(
            what.capitalize(),
            "",
            table(["", *(name.replace("_bytes", ", MB").replace("_", " ") for name in names)], cells, BUS),
        )


def _figure(found: Mapping[str, float] | None, name: str) -> str:
    if found is None:
        return ""
    value = found["median"] / 1e6 if name.endswith("_bytes") else found["median"]
    return f"{value:,.1f}" if value < SMALL else f"{value:,.0f}"


def _notes(rows: Sequence[tuple[str, Row]]) -> Iterator[str]:
    if any(row["disturbed"] for _, row in rows):
        yield note(_LATE)
    for name, row in rows:
        for why, number in _counted(row["voids"]).items():
            yield note(f"Void, {name}: {why}" + (f" ({number} times)" if number > 1 else ""))


def _counted(texts: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        found[text] = found.get(text, 0) + 1
    return found
