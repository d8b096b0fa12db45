"""Rates and sizes of topics, from the times at which their messages reach the command."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

from msight_bus.message import Message


@dataclass(slots=True)
class Arrivals:
    """The messages of one topic in a span of time.

    Attributes:
        count, bytes: number of messages, and of bytes in their payloads.
        largest: bytes of the largest payload.
        first, last: arrival of the first and the last message, in seconds of the clock of `TopicRates`.
        intervals, sum, squares: number of intervals between two messages, their sum in seconds, and the sum of their squares.
        longest: the longest interval, in seconds.
    """

    count: int = 0
    bytes: int = 0
    largest: int = 0
    first: float = math.inf
    last: float = -math.inf
    intervals: int = 0
    sum: float = 0.0
    squares: float = 0.0
    longest: float = 0.0

    def add(self, at: float, size: int, interval: float | None) -> None:
        """Count a message of ``size`` bytes, ``interval`` seconds after the one before."""
        self.count += 1
        self.bytes += size
        self.largest = max(self.largest, size)
        self.first = min(self.first, at)
        self.last = at
        if interval is not None:
            self.intervals += 1
            self.sum += interval
            self.squares += interval * interval
            self.longest = max(self.longest, interval)

    def __add__(self, other: Arrivals) -> Arrivals:
        """Return the messages of both spans."""
        pairs = zip(_SUM, astuple(self), astuple(other), strict=True)
        return Arrivals(*[merge(one, another) for merge, one, another in pairs])

    def figures(self, now: float) -> dict[str, float | None]:
        """Return the figures of the span that ends at ``now``; ``None`` for an unknown figure.

        The rate is the number of intervals divided by the time from the first to the last message. The time since the last
        message is added where it exceeds two mean intervals.
        """
        rate = jitter = None
        if self.last > self.first:
            lasted = self.last - self.first
            silence = now - self.last - 2 * lasted / (self.count - 1)
            rate = (self.count - 1) / (lasted + max(0.0, silence))
        if self.intervals:
            jitter = math.sqrt(max(0.0, self.squares / self.intervals - (self.sum / self.intervals) ** 2)) * 1e3
        return {
            "rate": rate if self.count else 0.0,
            "megabytes_rate": None if rate is None else rate * self.bytes / self.count / 1e6,
            "jitter_ms": jitter,
            "longest_ms": None if jitter is None else self.longest * 1e3,
            "mean_bytes": self.bytes / self.count if self.count else None,
            "largest_bytes": self.largest,
            "messages": self.count,
        }


_SUM: tuple[Callable[[Any, Any], Any], ...] = (add, add, max, min, max, add, add, add, max)  # of each field


class TopicRates:
    """The arrivals on each topic, in the window and since the start.

    Attributes:
        clock: returns seconds; a step of the wall clock, which stamps ``Message.received_at``, must not change it.
        others: number of messages of topics beyond the limit, for which no rates are kept.
    """

    def __init__(self, window: int, most: int) -> None:
        """
        Args:
            window: length of the window in seconds: `turn` is called once a second.
            most: maximum number of topics; messages of further topics are only counted.
        """
        self.clock: Callable[[], float] = time.monotonic
        self.others = 0
        self._most = most
        self._window = window
        self._spans: dict[str, deque[Arrivals]] = {}  # all before the window, the window, and the current second

    def add(self, message: Message) -> None:
        """Count a message that arrives now."""
        spans = self._spans.get(message.topic)
        at, size = self.clock(), len(message.payload)
        if spans is not None:
            last = spans[-1].last if spans[-1].count else max([span.last for span in spans])
            spans[-1].add(at, size, at - last)
        elif len(self._spans) < self._most:
            self._spans[message.topic] = deque([Arrivals(), Arrivals()])
            self._spans[message.topic][-1].add(at, size, None)
        else:
            self.others += 1

    def turn(self) -> None:
        """End the current second of the window; called once a second."""
        for spans in self._spans.values():
            spans.append(Arrivals())
            if len(spans) > self._window + 2:
                before = spans.popleft()
                spans[0] = before + spans[0]

    def recent(self) -> dict[str, Arrivals]:
        """Return the arrivals of the window, by topic."""
        return {topic: sum(list(spans)[1:], Arrivals()) for topic, spans in self._spans.items()}

    def total(self) -> dict[str, Arrivals]:
        """Return all arrivals, by topic."""
        return {topic: sum(spans, Arrivals()) for topic, spans in self._spans.items()}
