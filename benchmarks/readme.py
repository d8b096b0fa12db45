"""The README's performance section, made from a result file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.catalog import BUS
from benchmarks.scale import SMALL
from benchmarks.targets import Verdict, verdicts
from msight_bus.bench.machine import in_words

BEGIN = "<!-- performance:begin -->"
END = "<!-- performance:end -->"
_PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
_STATES = {"pass": "pass", "FAIL": "**FAIL**"}


def section(result: Mapping[str, Any], link: str) -> str:
    """Markdown between its markers: what was measured, on what, and how to measure it again.

    ``link`` is the path of the result file as the README has to write it.
    """
    found = list(verdicts(result))
    lines = [
        BEGIN,
        *_wrapped(
            f"Measured {result['started'][:10]} in {result['seconds'] / 60:.0f} minutes on {in_words(result['machine'])}; "
            f"{_brokers(result)}. Each ratio is the bus to a reference in the same round, the median of interleaved rounds, "
            "and behind it is the target. *ceiling*: the smallest code that speaks the protocol; *client*: the client "
            "library's own way; *disturbed*: the machine was too busy to decide. Only ratios carry to another machine. "
            + _counts(found)
        ),
        "",
        *_ratios(found),
        "",
        *_figures(result),
        "",
        f"All figures, rounds and versions: [{link.rpartition('/')[2]}]({link}).",
        "`python -m benchmarks html FILE PAGE` draws them. The same on your machine:",
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
    return f"Of {len(found)} targets: {', '.join(f'{number} {state}' for number, state in counted if number)}."


def _ratios(found: list[Verdict]) -> Iterator[str]:
    """A row a target, a column a backend; rows that no backend has a result for are only counted."""
    backends = list(dict.fromkeys(one.backend for one in found))
    yield f"| the bus / the reference | {' | '.join(backends)} |"
    yield "| --- |" + " --- |" * len(backends)
    by_place = {(one.title, one.backend): one for one in found}
    for title in dict.fromkeys(one.title for one in found if one.rounds):
        yield f"| {title} | {' | '.join(_cell(by_place.get((title, backend))) for backend in backends)} |"


def _cell(one: Verdict | None) -> str:
    if one is None:
        return ""
    if not one.rounds:
        return one.state
    return f"{one.ratio:.2f} ({'≥' if one.at_least else '≤'} {one.bound:.2f}) {_STATES.get(one.state, one.state)}"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    """The bus's own latencies and rates."""
    yield "| the bus | " + " | ".join(f"{name}, µs" for name in _PERCENTILES) + " | subscribe, /s | publish, /s |"
    yield "| --- |" + " ---: |" * (len(_PERCENTILES) + 2)
    for backend, measured in result["backends"].items():
        rows = {(row["what"], row["size"]): row for row in measured["measurements"] if row["candidate"] == BUS}
        late = next((row for (what, _), row in rows.items() if what == "latency" and row["summary"]), None)
        if late is None:
            continue
        cells = [f"{late['summary'][name]['median']:,.0f}" for name in _PERCENTILES]
        for what in ("subscribe", "publish"):
            found = (rows.get((what, SMALL)) or {}).get("summary")
            cells.append(f"{found['rate']['median']:,.0f}" if found else "")
        mark = " (disturbed)" if late["disturbed"] else ""
        yield f"| {backend}{mark} | {' | '.join(cells)} |"
    yield ""
    yield "One-way latency of 1 KiB at 1 000 messages a second; messages a second of 128 B."
