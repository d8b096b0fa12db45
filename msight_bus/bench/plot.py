"""Plots as inline SVG: nothing is fetched and no script runs; the page's style gives the colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from msight_bus.bench.axes import Axis

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 88, 590, 14, 322
_LABEL_GAP = 19
_BAR_STEP, _BAR_LEFT, _BAR_RIGHT = 26, 130, 590
_SPREAD_STEP = 2.5
"""The spreads of several lines at one x stand this far beside each other."""

_SHAPES = ("circle", "square", "diamond", "triangle")

COLOURS: Mapping[str, tuple[str, str]] = {
    "bus": ("#00795a", "#3ad6a8"),
    "ceiling": ("#5c5c5c", "#b5b5b5"),
    "again": ("#9a9a9a", "#7d7d7d"),
    "plain": ("#8a6d3b", "#d3b67a"),
    "asyncio": ("#5b7d00", "#b5d65a"),
    "client": ("#0060a8", "#6cb8f5"),
    "framework": ("#c04a00", "#ff9a55"),
    "redis": ("#b8242a", "#ff8080"),
    "nats": ("#00795a", "#3ad6a8"),
    "kafka": ("#7040b0", "#c3a1ff"),
}
"""Colour by class, on light and on dark ground."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line.

    Attributes:
        name: written beside its end.
        colour: one of `COLOURS`.
        points: x and y, from left to right.
        spread: lowest and highest y of each point, over rounds.
        dashed: whether the line is broken.
        open_end: whether the last point is drawn hollow: there the rate was not held.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()
    dashed: bool = False
    open_end: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with the lowest and the highest round, and what is written behind it."""

    name: str
    colour: str
    value: float
    low: float
    high: float
    text: str


def lines(x: Axis, y: Axis, series: Sequence[Series], summary: str) -> str:
    """A plot of lines; each has its name at the right, at the height of its end.

    ``summary`` tells those who cannot see the plot what it is.
    """
    drawn = [one for one in series if one.points]
    parts = [_opening(_HEIGHT, summary), *_grid(x, y)]
    ends = [_y(y, one.points[-1][1]) for one in drawn]
    for number, (one, label_y) in enumerate(zip(drawn, apart(ends, _LABEL_GAP, _TOP + 6, _BOTTOM), strict=True)):
        beside = (number - (len(drawn) - 1) / 2) * _SPREAD_STEP
        parts += _line(x, y, one, _SHAPES[number % len(_SHAPES)], label_y=label_y, beside=beside)
    return "".join(parts) + "</svg>"


def bars(values: Sequence[Bar], unit: str) -> str:
    """Horizontal bars from zero, with a thin line from the lowest to the highest round."""
    most = max((bar.high for bar in values), default=0.0) or 1.0
    parts = [_opening(_BAR_STEP * len(values) + 6, f"bars: {unit}")]
    for place, bar in enumerate(values):
        y = 4 + _BAR_STEP * place
        wide, low, high = ((_BAR_RIGHT - _BAR_LEFT) * value / most for value in (bar.value, bar.low, bar.high))
        parts += [
            f'<g class="{bar.colour}"><text x="{_BAR_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{_BAR_LEFT}" y="{y}" width="{max(1.0, wide):.1f}" height="18"/>',
            f'<path class="spread" d="M{_BAR_LEFT + low:.1f} {y + 9}H{_BAR_LEFT + high:.1f}"/>',
            f'<text x="{_BAR_RIGHT + 10}" y="{y + 14}">{escape(bar.text)}</text></g>',
        ]
    return "".join(parts) + "</svg>"


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places, moved as little as is simple so that they are ``gap`` apart, in the same order, between two bounds."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = list(places)
    at = low - gap
    for number in order:
        at = found[number] = max(found[number], at + gap)
    at = high + gap
    for number in reversed(order):
        at = found[number] = min(found[number], at - gap)
    return found


def _opening(height: int, summary: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(summary)}">'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_RIGHT - _LEFT)


def _y(axis: Axis, value: float) -> float:
    return _BOTTOM - axis.share(value) * (_BOTTOM - _TOP)


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    for value in y.minor:
        yield f'<path class="minor" d="M{_LEFT} {_y(y, value):.1f}H{_RIGHT}"/>'
    for value in x.minor:
        yield f'<path class="minor" d="M{_x(x, value):.1f} {_TOP}V{_BOTTOM}"/>'
    for value, text in y.ticks:
        at = _y(y, value)
        yield f'<path class="grid" d="M{_LEFT} {at:.1f}H{_RIGHT}"/>'
        yield f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    for value, text in x.ticks:
        at = _x(x, value)
        yield f'<path class="grid" d="M{at:.1f} {_TOP}V{_BOTTOM}"/>'
        yield f'<text x="{at:.1f}" y="{_BOTTOM + 19}" text-anchor="middle">{escape(text)}</text>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text class="axis" x="{middle}" y="{_BOTTOM + 44}" text-anchor="middle">{escape(x.title)}</text>'
    middle = (_TOP + _BOTTOM) / 2
    yield (
        f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y.title)}</text>'
    )


def _line(x: Axis, y: Axis, one: Series, shape: str, *, label_y: float, beside: float) -> Iterator[str]:
    points = [(_x(x, a), _y(y, b)) for a, b in one.points]
    yield f'<g class="{one.colour}">'
    for (at, _), (low, high) in zip(points, one.spread, strict=False):
        yield f'<path class="spread" d="M{at + beside:.1f} {_y(y, low):.1f}V{_y(y, high):.1f}"/>'
    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    yield f'<polyline class="line{" dashed" if one.dashed else ""}" points="{drawn}"/>'
    for number, (a, b) in enumerate(points):
        hollow = one.open_end and number == len(points) - 1
        yield _mark(shape, a, b, hollow=hollow)
    end_x, end_y = points[-1]
    yield f'<path class="leader" d="M{end_x + 6:.1f} {end_y:.1f}L{_RIGHT + 6} {label_y:.1f}"/>'
    yield _mark(shape, _RIGHT + 14, label_y, hollow=False)
    yield f'<text class="name" x="{_RIGHT + 24}" y="{label_y + 4:.1f}">{escape(one.name)}</text></g>'


def _mark(shape: str, x: float, y: float, *, hollow: bool) -> str:
    style = ' class="hollow"' if hollow else ""
    if shape == "circle":
        return f'<circle{style} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -5), (4.5, 4), (-4.5, 4)),
    }[shape]
    return f'<polygon{style} points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}"/>'
