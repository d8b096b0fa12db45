"""What a node measures about itself: counters, rates and latencies, at a cost of well under a microsecond an item."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from msight_bus.registry import NodeMetrics

_SAMPLES = 512


class Meter:
    """Counters of one run of a node.

    Attributes:
        messages_in: inputs taken.
        messages_out: outputs handed over.
        errors: errors in the node's own code.
        undecodable: inputs that were not the data they should be.
        unsent: outputs given up while the broker was away, and inputs of which there is no dead letter.
    """

    __slots__ = ("_clock", "_in_before", "_interval", "_latencies", "_out_before", "_p50", "_p99", "_rate_in", "_rate_out",
                 "_seen", "_since", "errors", "messages_in", "messages_out", "undecodable", "unsent")  # fmt: skip

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Rates and latencies are over ``interval`` seconds of ``clock``."""
        self.messages_in = 0
        self.messages_out = 0
        self.errors = 0
        self.undecodable = 0
        self.unsent = 0
        self._interval = interval
        self._clock = clock
        self._since = clock()
        self._in_before = 0
        self._out_before = 0
        self._rate_in = 0.0
        self._rate_out = 0.0
        # A uniform sample of the interval's latencies, however many there are (reservoir sampling, algorithm R).
        self._latencies: list[float] = []
        self._seen = 0
        self._p50: float | None = None
        self._p99: float | None = None

    def took(self, seconds: float) -> None:
        """One item's latency. A negative one tells only that two clocks disagree, and is left out."""
        if seconds < 0:
            return
        self._seen += 1
        if len(self._latencies) < _SAMPLES:
            self._latencies.append(seconds)
        else:
            place = int(random.random() * self._seen)
            if place < _SAMPLES:
                self._latencies[place] = seconds

    def snapshot(self, *, queued: int, dropped: int) -> NodeMetrics:
        """The figures now. Rates and latencies begin anew when the interval is over."""
        now = self._clock()
        elapsed = now - self._since
        # An announcement between two heartbeats, at a change of status, must not show the rate of a few milliseconds.
        if elapsed >= self._interval / 2:
            self._rate_in = (self.messages_in - self._in_before) / elapsed
            self._rate_out = (self.messages_out - self._out_before) / elapsed
            self._since, self._in_before, self._out_before = now, self.messages_in, self.messages_out
        if self._latencies:
            ordered = sorted(self._latencies)
            self._p50 = ordered[len(ordered) // 2] * 1000
            self._p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000
            if self._since == now:
                self._latencies, self._seen = [], 0
        return NodeMetrics(
            messages_in=self.messages_in,
            messages_out=self.messages_out,
            rate_in=self._rate_in,
            rate_out=self._rate_out,
            queued=queued,
            dropped=dropped + self.unsent,
            errors=self.errors,
            undecodable=self.undecodable,
            latency_p50_ms=self._p50,
            latency_p99_ms=self._p99,
        )
