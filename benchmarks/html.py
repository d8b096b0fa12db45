"""Render a result as one self-contained HTML page with the tables of `report` and the charts, without scripts."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from benchmarks.catalog import BUS
from benchmarks.charts import by_rate, by_size, latency, rates
from benchmarks.report import show

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ font: .78em/1.3 ui-monospace, monospace; overflow-x: auto }} img {{ max-width: 100% }}
</style></head><body><h1>{title}</h1>
<p>Measured {started} UTC; again: <code>{command}</code></p>
{charts}
{tables}
</body></html>
"""
_CHARTS = (
    ("rate", by_rate, "Latency by rate until saturation, 1 KiB; a hollow point was not held"),
    ("size", by_size, "Throughput by size, from publisher to subscriber"),
)
_LATENCY = "One-way latency, 1 KiB at 1,000 messages a second"


def page(result: Mapping[str, Any]) -> str:
    """Return the whole page."""
    console = Console(record=True, width=150, file=io.StringIO(), highlight=False)
    show(result, console)
    return _PAGE.format(
        title=f"msight-bus: benchmark of {result['started'][:10]}",
        started=escape(result["started"][:16].replace("T", " ")),
        command=escape(result["command"]),
        charts="\n".join(_charts(result["backends"])),
        tables=console.export_html(theme=DEFAULT_TERMINAL_THEME, inline_styles=True, code_format="<pre>{code}</pre>"),
    )


def _charts(backends: Mapping[str, Any]) -> Iterator[str]:
    ours = [
        (name, row)
        for name, measured in backends.items()
        for row in measured["measurements"]
        if row["what"] == "latency" and row["candidate"] == BUS and row["summary"]
    ]
    if len(ours) > 1:
        yield "<h2>The bus on each backend</h2>"
        yield _image(_LATENCY, latency(ours))
    for name, measured in backends.items():
        yield f"<h2>{escape(name)}</h2>"
        rows = [row for row in measured["measurements"] if row["summary"]]
        late = [(row["candidate"], row) for row in rows if row["what"] == "latency"]
        if late:
            yield _image(_LATENCY, latency(late))
        for what, draw, title in _CHARTS:
            if what in measured.get("curves", {}):
                yield _image(title, draw(measured["curves"][what]))
        fast = [row for row in rows if "rate" in row["summary"]]
        for what, size in dict.fromkeys((row["what"], row["size"]) for row in fast):
            named = [(row["candidate"], row) for row in fast if (row["what"], row["size"]) == (what, size)]
            yield _image(f"{what.capitalize()}, {size:,} B", rates(named))


def _image(title: str, figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg")
    source = b64encode(drawn.getvalue()).decode()
    return f'<h3>{escape(title)}</h3>\n<img alt="{escape(title)}" src="data:image/svg+xml;base64,{source}">'
