"""The README's performance section, made from a result file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.targets import Verdict, verdicts
from msight_bus.bench.machine import in_words

BEGIN = "<!-- performance: begin (python -m benchmarks readme writes this) -->"
END = "<!-- performance: end -->"
_SIZES = {128: "128 B", 131072: "128 KiB", 1_000_000: "1 MB"}


def section(result: Mapping[str, Any]) -> str:
    """Markdown between its markers: what was measured, on what, and how to measure it again."""
    lines = [
        BEGIN,
        "Ratios of one run on one machine; publisher and subscriber are two processes, the rounds are interleaved, and",
        "each ratio is the median over rounds. Absolute figures do not carry to another machine.",
        "",
        *_latencies(result),
        *_throughputs(result),
        *_ratios(result),
        f"Measured {result['started'][:10]} in {result['seconds'] / 60:.0f} minutes on {in_words(result['machine'])}; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ". The same for your machine:",
        "",
        "```sh",
        result["command"],
        "```",
        END,
    ]
    return "\n".join(lines) + "\n"


def put(readme: str, written: str) -> str:
    """``readme`` with the section in place of the one between the markers.

    Raises:
        ValueError: the markers are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The file has no place for the section; put these two lines where it belongs:\n{BEGIN}\n{END}"
        )
    return before + written.rstrip("\n") + after


def _brokers(measured: Mapping[str, Any]) -> str:
    stand_in = " (a stand-in, not Apache Kafka)" if measured["is_stand_in"] else ""
    return f"{measured['broker']} {measured['version']}{stand_in}"


def _latencies(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| one way, 1 KiB at 1 000/s, µs | p50 | p90 | p99 | p99.9 | max |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    marked = False
    for backend, measured in result["backends"].items():
        for row in measured["measurements"]:
            found = row["summary"]
            if row["what"] != "latency" or found is None:
                continue
            values = (f"{found[name]['median']:,.0f}" for name in ("p50", "p90", "p99", "p99.9", "max"))
            star = " \\*" if row["disturbed"] else ""
            marked = marked or bool(star)
            yield f"| {backend}, {row['candidate']}{star} | " + " | ".join(values) + " |"
    yield ""
    if marked:
        yield "\\* In some rounds the machine was too busy: the sender was late by more than a tenth of the latency."
        yield ""


def _throughputs(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| messages a second | " + " | ".join(_SIZES.values()) + " | CPU µs a message at 128 B |"
    yield "| --- | " + " | ".join("---:" for _ in _SIZES) + " | ---: |"
    for backend, measured in result["backends"].items():
        rows = {(row["what"], row["candidate"], row["size"]): row["summary"] for row in measured["measurements"]}
        for what, name in dict.fromkeys((what, name) for what, name, _ in rows if what in ("subscribe", "publish")):
            found = [rows.get((what, name, size)) for size in _SIZES]
            cells = [f"{summary['rate']['median']:,.0f}" if summary else "" for summary in found]
            cpu = f"{found[0]['cpu_us']['median']:.2f}" if found[0] else ""
            yield f"| {backend} ({_brokers(measured)}), {what}, {name} | " + " | ".join([*cells, cpu]) + " |"
    yield ""


def _ratios(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| the bus / the reference | ratio | lowest–highest round | target | |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for verdict in verdicts(result):
        yield f"| {verdict.backend} {verdict.title} | " + " | ".join(_cells(verdict)) + " |"
    yield ""


def _cells(verdict: Verdict) -> list[str]:
    target = f"{'≥' if verdict.at_least else '≤'} {verdict.bound:.2f}"
    if not verdict.rounds:
        return ["", "", target, verdict.state]
    return [f"{verdict.ratio:.2f}", f"{verdict.low:.2f}–{verdict.high:.2f}", target, verdict.state]
