"""Rates and sizes of topics, from the arrival times of their messages. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from msight_bus.message import Message


@dataclass(slots=True)
class Arrivals:
    """The messages of one topic in a span of time.

    Attributes:
        count, bytes: number of messages, and of bytes in their payloads.
        largest: bytes of the largest payload.
        first, last: arrival of the first and the last message, in POSIX seconds.
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

    def __add__(self, other: Arrivals) -> Arrivals:
        """Return the messages of both spans."""
        return Arrivals(
            self.count + other.count,
            self.bytes + other.bytes,
            max(self.largest, other.largest),
            min(self.first, other.first),
            max(self.last, other.last),
            self.intervals + other.intervals,
            self.sum + other.sum,
            self.squares + other.squares,
            max(self.longest, other.longest),
        )

    def rate(self, now: float) -> float | None:
        """Return messages a second until the last one, or until ``now`` if the topic has become silent; ``None`` if unknown."""
        if self.count < 2 or self.last <= self.first:
            return None if self.count else 0.0
        lasted = self.last - self.first
        silent = now - self.last - 2 * lasted / (self.count - 1)
        return (self.count - 1) / (lasted + max(0.0, silent))

    @property
    def jitter(self) -> float | None:
        """Standard deviation of the intervals, in seconds; ``None`` if unknown."""
        if not self.intervals:
            return None
        mean = self.sum / self.intervals
        return math.sqrt(max(0.0, self.squares / self.intervals - mean * mean))


class TopicRates:
    """The arrivals on each topic, over the last seconds and over the whole time.

    Attributes:
        others: messages of topics beyond the limit, which are only counted.
    """

    def __init__(self, window: int, most: int) -> None:
        """``window``: number of `turn`s that the window lasts; ``most``: maximum number of topics."""
        self.others = 0
        self._window = window
        self._most = most
        self._spans: dict[str, deque[Arrivals]] = {}  # the last one is current
        self._before: dict[str, Arrivals] = {}
        self._last: dict[str, float] = {}

    def add(self, messages: Sequence[Message]) -> None:
        """Count messages in the order of their arrival."""
        for message in messages:
            spans = self._spans.get(message.topic)
            if spans is None:
                if len(self._spans) >= self._most:
                    self.others += 1
                    continue
                spans = self._spans[message.topic] = deque([Arrivals()])
            now, at, size = spans[-1], message.received_at, len(message.payload)
            last = self._last.get(message.topic)
            self._last[message.topic] = at
            now.count += 1
            now.bytes += size
            now.largest = max(now.largest, size)
            now.first = min(now.first, at)
            now.last = at
            if last is not None:
                interval = max(0.0, at - last)
                now.intervals += 1
                now.sum += interval
                now.squares += interval * interval
                now.longest = max(now.longest, interval)

    def turn(self) -> None:
        """End a second."""
        for topic, spans in self._spans.items():
            spans.append(Arrivals())
            if len(spans) > self._window + 1:
                self._before[topic] = self._before.get(topic, Arrivals()) + spans.popleft()

    def recent(self) -> dict[str, Arrivals]:
        """Return the arrivals of the window, by topic."""
        return {topic: sum(spans, Arrivals()) for topic, spans in self._spans.items()}

    def total(self) -> dict[str, Arrivals]:
        """Return all arrivals, by topic."""
        return {topic: sum(spans, self._before.get(topic, Arrivals())) for topic, spans in self._spans.items()}
