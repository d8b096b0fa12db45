"""The README's performance section, generated from a result file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.catalog import BUS, CLIENT, FRAMEWORK, MSIGHT
from benchmarks.scale import SMALL
from benchmarks.targets import LATENCY_SIZE, TARGETS, Row, Verdict, verdicts
from msight_bus.bench.machine import in_words

BEGIN = "<!-- performance:begin -->"
END = "<!-- performance:end -->"
_FIGURES = (
    ("latency of 1 KiB, p50, µs", "latency", LATENCY_SIZE, "p50"),
    ("latency of 1 KiB, p99, µs", "latency", LATENCY_SIZE, "p99"),
    ("subscribe 128 B, messages a second", "subscribe", SMALL, "rate"),
    ("publish 128 B, messages a second", "publish", SMALL, "rate"),
)
"""Rows of the table: title, kind of measurement, payload bytes, figure."""

_REFERENCES = {(figure, reference) for figure in ("p50", "rate") for reference in (CLIENT, FRAMEWORK, MSIGHT)}
"""Targets that the table shows, by figure and reference."""


def section(result: Mapping[str, Any], link: str) -> str:
    """Return the section between its markers: the machine, the figures, the targets that are not reached, the command.

    Args:
        result: a result file.
        link: path of the result file, relative to the README.
    """
    found = list(verdicts(result))
    lines = [
        BEGIN,
        *_wrapped(
            f"Measured {result['started'][:10]} on {in_words(result['machine'])}; {_brokers(result)}. A ratio is the bus to a "
            "reference, the median of interleaved rounds. *client*: the client library's own way; *ceiling*: the smallest code "
            "that speaks the protocol. Ratios are comparable across machines, absolute figures are not."
        ),
        "",
        *_table(result, found),
        "",
        _counts(found),
        "",
        *_missed(found),
        f"[{link.rpartition('/')[2]}]({link}) has all rounds and versions, and",
        "`python -m benchmarks html FILE PAGE` draws them. To measure on your machine:",
        "",
        "```sh",
        result["command"],
        "```",
        END,
    ]
    return "\n".join(lines) + "\n"


def put(readme: str, written: str) -> str:
    """Return ``readme`` with ``written`` between the markers.

    Raises:
        ValueError: ``readme`` has no markers.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The file has no markers for the section; add these two lines where the section belongs:\n{BEGIN}\n{END}"
        )
    return before + written.rstrip("\n") + after


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _brokers(result: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{measured['broker']} {measured['version']}" + " (a stand-in, not Apache Kafka)" * measured["is_stand_in"]
        for measured in result["backends"].values()
    )


def _counts(found: list[Verdict]) -> str:
    states = ("pass", "FAIL", "disturbed", "no result")
    counted = [(sum(one.state == state for one in found), state) for state in states]
    texts = {
        "pass": "are reached",
        "FAIL": "are **not reached**",
        "disturbed": "are undecided (noise)",
        "no result": "have no result",
    }
    return f"Of {len(found)} targets, {', '.join(f'{number} {texts[state]}' for number, state in counted if number)}."


def _missed(found: list[Verdict]) -> Iterator[str]:
    """The targets that are not reached: a list with one line for each row, and an empty line."""
    missed = [one for one in found if one.state == "FAIL"]
    for title in dict.fromkeys(one.title for one in missed):
        cells = [
            f"{one.backend} {one.ratio:.2f} (target {'≥' if one.at_least else '≤'} {one.bound:.2f})"
            for one in missed
            if one.title == title
        ]
        yield f"- Not reached: {title}: {', '.join(cells)}"
    if missed:
        yield ""


def _table(result: Mapping[str, Any], found: list[Verdict]) -> Iterator[str]:
    """One column per backend: figures of the bus, then ratios to the references of `_REFERENCES`."""
    backends = list(result["backends"])
    yield f"| the bus | {' | '.join(backends)} |"
    yield "| --- |" + " ---: |" * len(backends)
    for title, what, size, figure in _FIGURES:
        cells = [_figure(result["backends"][backend]["measurements"], what, size, figure) for backend in backends]
        yield f"| {title} | {' | '.join(cells)} |"
    ratios = {(one.title, one.backend): f"{one.ratio:.2f}" for one in found if one.rounds}
    for title in (target.title for target in TARGETS if (target.figure, target.against) in _REFERENCES):
        cells = [ratios.get((title, backend), "") for backend in backends]
        if any(cells):
            yield f"| {title} | {' | '.join(cells)} |"


def _figure(measurements: Iterable[Row], what: str, size: int, figure: str) -> str:
    for row in measurements:
        if (row["what"], row["size"], row["candidate"]) == (what, size, BUS) and row["summary"]:
            return f"{row['summary'][figure]['median']:,.0f}" + " (disturbed)" * bool(row["disturbed"])
    return ""
