"""A result as one self-contained HTML page: plots as inline SVG, no scripts, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.targets import verdicts
from msight_bus.bench.machine import in_words

_PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
_COLOURS = {
    "ceiling": "#888888",
    "ceiling again": "#bbbbbb",
    "plain ceiling": "#555555",
    "client": "#0072b2",
    "FastStream": "#d55e00",
    "bus": "#009e73",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: right } th:first-child,
td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd } .FAIL { color: #b00020; font-weight: bold }
.pass { color: #00703c } svg { width: 100%; height: auto } text { font: 12px system-ui, sans-serif; fill: #222 }
"""


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    body = "\n".join(_body(result))
    title = f"msight-bus: benchmark of {escape(result['started'][:10])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _body(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(in_words(result['machine']))}<br><code>{escape(result['command'])}</code><br>"
    yield escape(", ".join(f"{name} {number}" for name, number in result["versions"].items())) + "</p>"
    for backend, measured in result["backends"].items():
        stand_in = ", a stand-in, not Apache Kafka" if measured["is_stand_in"] else ""
        yield f"<h2>{escape(backend)}: {escape(measured['broker'])} {escape(measured['version'])}{stand_in}</h2>"
        rows = [row for row in measured["measurements"] if row["summary"] is not None]
        late = [row for row in rows if row["what"] == "latency"]
        if late:
            yield "<h3>One-way latency, 1 KiB at 1 000/s</h3>"
            yield _latency_plot(late)
        for what in ("subscribe", "publish"):
            for size in sorted({row["size"] for row in rows if row["what"] == what}):
                yield f"<h3>{what}, {size:,} B</h3>"
                yield _bars([row for row in rows if row["what"] == what and row["size"] == size])
    yield "<h2>Targets</h2><table><tr><th>the bus / the reference<th>ratio<th>rounds<th>target<th></tr>"
    for verdict in verdicts(result):
        sign = "≥" if verdict.at_least else "≤"
        ratio = f"{verdict.ratio:.2f}" if verdict.rounds else ""
        spread = f"{verdict.low:.2f}–{verdict.high:.2f}" if verdict.rounds else ""
        yield (
            f"<tr><td>{escape(verdict.backend)} {escape(verdict.title)}<td>{ratio}<td>{spread}"
            f'<td>{sign} {verdict.bound:.2f}<td class="{verdict.state.split()[0]}">{verdict.state}</tr>'
        )
    yield "</table>"


def _latency_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Percentiles from left to right, microseconds upwards on a log scale, a line a candidate."""
    values = [row["summary"][name]["median"] for row in rows for name in _PERCENTILES]
    low, high = math.floor(math.log10(max(1.0, min(values)))), math.ceil(math.log10(max(10.0, *values)))
    left, right, top, bottom = 80, 620, 15, 265

    def up(value: float) -> float:
        return bottom - (math.log10(max(1.0, value)) - low) / max(1, high - low) * (bottom - top)

    def across(number: int) -> float:
        return left + 30 + number * (right - left - 60) / (len(_PERCENTILES) - 1)

    parts = ['<svg viewBox="0 0 800 300" role="img" aria-label="latency by percentile, log scale">']
    for power in range(low, high + 1):
        y = up(10**power)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10**power:,} µs</text>')
    for number, name in enumerate(_PERCENTILES):
        parts.append(f'<text x="{across(number):.1f}" y="290" text-anchor="middle">{name}</text>')
    for place, row in enumerate(rows):
        colour = _COLOURS.get(row["candidate"], "#000")
        points = [(across(n), up(row["summary"][name]["median"])) for n, name in enumerate(_PERCENTILES)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = 25 + 20 * place
        parts.append(f'<rect x="640" y="{y - 9}" width="12" height="10" fill="{colour}"/>')
        note = " *" if row["disturbed"] else ""
        parts.append(f'<text x="658" y="{y}">{escape(row["candidate"])}{note}</text>')
    return "".join(parts) + "</svg>" + _NOTE * any(row["disturbed"] for row in rows)


_NOTE = "<p>* In some rounds the sender was late by more than a tenth of the latency.</p>"


def _bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar a candidate; a thin line from its slowest to its fastest round."""
    most = max(row["summary"]["rate"]["max"] for row in rows) or 1.0
    height = 26 * len(rows) + 6
    parts = [f'<svg viewBox="0 0 800 {height}" role="img" aria-label="messages a second">']
    for place, row in enumerate(rows):
        rate = row["summary"]["rate"]
        y = 4 + 26 * place
        wide, low, high = (500 * rate[name] / most for name in ("median", "min", "max"))
        colour = _COLOURS.get(row["candidate"], "#000")
        parts.append(f'<text x="104" y="{y + 14}" text-anchor="end">{escape(row["candidate"])}</text>')
        parts.append(f'<rect x="110" y="{y}" width="{wide:.1f}" height="18" fill="{colour}"/>')
        parts.append(
            f'<line x1="{110 + low:.1f}" x2="{110 + high:.1f}" y1="{y + 9}" y2="{y + 9}" stroke="#000" stroke-width="1.5"/>'
        )
        parts.append(f'<text x="620" y="{y + 14}">{rate["median"]:,.0f}/s</text>')
    return "".join(parts) + "</svg>"
