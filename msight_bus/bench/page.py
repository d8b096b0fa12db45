"""A self-contained HTML page: one file, one style, no script, nothing fetched; for light and for dark screens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from msight_bus.bench.machine import in_words
from msight_bus.bench.plot import COLOURS


def _colours(number: int) -> str:
    return "".join(f".{name}{{--c:{pair[number]}}}" for name, pair in COLOURS.items())


_STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --faint: #e9e9ec; --grid: #c9c9cf; --bad: #b00020;
  --good: #00703c; --doubt: #8a5a00 }}
{_colours(0)}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8ea; --paper: #17181a; --faint: #2a2b2f; --grid: #45474d; --bad: #ff8a8a; --good: #6fdc9f;
    --doubt: #ffc766 }}
  {_colours(1)}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper) }}
h1 {{ line-height: 1.2 }} h2 {{ margin-top: 3rem; border-bottom: 2px solid var(--grid) }} h3 {{ margin: 2rem 0 .3rem }}
pre, code {{ font: .9em ui-monospace, monospace; background: var(--faint); border-radius: 4px; padding: .1em .35em }}
pre {{ padding: .6rem .8rem; overflow-x: auto }}
.wide {{ overflow-x: auto }} svg {{ width: 100%; min-width: 42rem; height: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; margin: .4rem 0 1rem }}
td, th {{ padding: .15rem .9rem .15rem 0; text-align: right; white-space: nowrap }}
td:first-child, th:first-child {{ text-align: left }} tr {{ border-bottom: 1px solid var(--faint) }}
thead tr {{ border-bottom: 1px solid var(--grid) }} tr.bus td {{ font-weight: 600 }}
.prose td, .prose th {{ text-align: left; white-space: normal }}
.FAIL {{ color: var(--bad); font-weight: 700 }} .pass {{ color: var(--good) }} .disturbed, .no {{ color: var(--doubt) }}
.note {{ font-size: .92em; max-width: 46rem }} dt {{ font-weight: 600; float: left; clear: left; width: 7rem }}
dd {{ margin-left: 7.5rem }}
text {{ font: 13px system-ui, sans-serif; fill: var(--ink) }} .axis {{ font-weight: 600 }} .name {{ fill: var(--c) }}
.bus .name {{ font-weight: 700 }} .grid {{ stroke: var(--grid); stroke-width: .8 }}
.minor {{ stroke: var(--faint); stroke-width: .8 }} .line {{ fill: none; stroke: var(--c); stroke-width: 2 }}
.bus .line {{ stroke-width: 3 }} .dashed {{ stroke-dasharray: 6 4 }}
.spread {{ stroke: var(--c); stroke-width: 1.6; opacity: .5 }}
rect + .spread {{ stroke: var(--ink); opacity: .8 }}
.leader {{ stroke: var(--c); stroke-width: 1; stroke-dasharray: 1 3 }}
circle, polygon, rect {{ fill: var(--c); stroke: var(--c) }} rect {{ fill-opacity: .6 }}
.hollow {{ fill: var(--paper); stroke-width: 2 }}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole file; ``parts`` are HTML already."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def origin(result: Mapping[str, Any]) -> str:
    """Where a result comes from: when, on what machine, with which versions, by which command."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    took = f", {result['seconds'] / 60:.1f} minutes" if "seconds" in result else ""
    return (
        f"<dl><dt>measured<dd>{escape(result['started'][:16].replace('T', ' '))} UTC{took}"
        f"<dt>machine<dd>{escape(in_words(result['machine']))}<dt>versions<dd>{escape(versions)}"
        f"<dt>again<dd><code>{escape(result['command'])}</code></dl>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], ours: str = "", *, prose: bool = False) -> str:
    """A table of text; the row whose first cell is ``ours`` stands out, and so do verdicts. ``prose``: no figures."""
    parts = ["<thead><tr>", *(f"<th>{escape(cell)}" for cell in head), "</thead>"]
    for row in rows:
        parts.append('<tr class="bus">' if ours and row[0].rstrip(" *") == ours else "<tr>")
        parts += [f"<td{_verdict(cell)}>{escape(cell)}" for cell in row]
    kind = ' class="prose"' if prose else ""
    return f'<div class="wide"><table{kind}>{"".join(parts)}</table></div>'


def _verdict(cell: str) -> str:
    first = cell.split(" ", 1)[0]
    return f' class="{first}"' if first in {"pass", "FAIL", "disturbed", "no"} else ""


def heading(text: str) -> str:
    """The beginning of a part."""
    return f"<h2>{escape(text)}</h2>"


def figure(title: str, picture: str, *below: str) -> str:
    """A plot with its title and what stands under it."""
    return f'<h3>{escape(title)}</h3>\n<div class="wide">{picture}</div>\n' + "\n".join(below)


def note(text: str) -> str:
    """A paragraph."""
    return f'<p class="note">{escape(text)}</p>'
