"""Axes of a plot: where a value lies, which values get a tick, and how a tick is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_MANY_DECADES = 3
"""From here on only whole decades have a label, or labels would touch."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        title: what is shown, with its unit.
        low: value at the beginning.
        high: value at the end.
        ticks: values that have a line and a label.
        minor: values that have a faint line.
        scale: what is linear in length; logarithmic unless said otherwise.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    minor: Sequence[float] = ()
    scale: Callable[[float], float] = math.log10

    def share(self, value: float) -> float:
        """How far along the axis a value lies, from 0 to 1; values outside are put on its ends."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(min(max(value, self.low), self.high)) - low) / (high - low)


def log_axis(title: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """A logarithmic axis from a 1, 2 or 5 below all values to one above them."""
    positive = [value for value in values if value > 0] or [1.0]
    steps = list(_steps(math.floor(math.log10(min(positive))) - 1, math.ceil(math.log10(max(positive))) + 1))
    low = max(step for step in steps if step <= min(positive) * 1.000001)
    high = min(step for step in steps if step > max(positive))
    inside = [step for step in steps if low <= step <= high]
    many = math.log10(high / low) > _MANY_DECADES
    labelled = [step for step in inside if not many or _is_decade(step)]
    return Axis(title, low, high, [(step, text(step)) for step in labelled], [s for s in inside if s not in labelled])


def _steps(first: int, last: int) -> Iterator[float]:
    for power in range(first, last + 1):
        yield from (base * 10.0**power for base in (1, 2, 5))


def _is_decade(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9


def size_axis(sizes: Sequence[int]) -> Axis:
    """A logarithmic axis that has a tick at each measured size."""
    low, high = min(sizes), max(sizes)
    return Axis(
        "size of a message (log scale)",
        low,
        max(high, low + 1),
        [(size, bytes_text(size)) for size in sorted(set(sizes))],
    )


def percentile_axis(samples: float) -> Axis:
    """Percentiles by nines, so that the slow tail has room: p90, p99 and p99.9 are equally far apart.

    It ends where one of ``samples`` messages is left, which is where the largest value belongs.
    """
    end = largest_share(samples)
    shown = {"fastest": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
    ticks = [(share, name) for name, share in shown.items() if share <= end]
    return Axis("percentile of the messages", 0.0, end, ticks, scale=lambda share: -math.log10(1 - share))


def largest_share(samples: float) -> float:
    """The share of the messages that were faster than the slowest of ``samples``."""
    return 1 - 1 / max(10.0, samples)


def time_text(microseconds: float) -> str:
    """``50 µs``, ``2 ms``, ``1 s``."""
    for unit, factor in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= factor:
            return f"{microseconds / factor:g} {unit}"
    return f"{microseconds:g} µs"


def count_text(number: float) -> str:
    """``500``, ``20 k``, ``1 M``."""
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def bytes_text(size: int) -> str:
    """``64 B``, ``128 KiB``, ``1 MB``: as whoever chose the size would write it."""
    if size >= 1_000_000 and size % 100_000 == 0:
        return f"{size / 1e6:g} MB"
    if size >= 1 << 20 and size % (1 << 20) == 0:
        return f"{size >> 20} MiB"
    if size >= 1024 and size % 1024 == 0:
        return f"{size >> 10} KiB"
    return f"{size:,} B"
