"""Metrics of a node: counters, rates and a latency histogram."""

from __future__ import annotations

import time
from collections.abc import Callable

from msight_bus.announcements import NodeMetrics

_STEPS_AN_OCTAVE = 8
BOUNDS = [1e-6 * 2 ** (step / _STEPS_AN_OCTAVE) for step in range(28 * _STEPS_AN_OCTAVE)]
"""Upper bounds of the histogram's buckets, in seconds, from 1 us to 4 minutes; quantiles are accurate to 5 %."""


class Meter:
    """Counters of one run of a node.

    Attributes:
        messages_in: inputs received.
        messages_out: outputs sent, without those that the broker refused later.
        errors: errors in the node's code.
        undecodable: inputs that could not be decoded.
        unsent: outputs dropped while disconnected, and inputs whose dead letter could not be published.
        dropped: inputs dropped by the queue.
        gaps, missing: gaps in the input and known missing messages; ``None`` where they are not counted.
        queued: returns the number of queued inputs.
        buckets: latency histogram, by `BOUNDS`, without negative latencies, which are clock skew.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            interval: seconds over which rates and latencies are measured.
            clock: returns seconds.
        """
        self.messages_in = 0
        self.messages_out = 0
        self.errors = 0
        self.undecodable = 0
        self.unsent = 0
        self.dropped = 0
        self.gaps: int | None = 0
        self.missing: int | None = 0
        self.queued: Callable[[], int] = lambda: 0
        self._interval = interval
        self._clock = clock
        self._since = clock()
        self._before = (0, 0)
        self._rates = (0.0, 0.0)
        self.buckets = [0] * (len(BOUNDS) + 1)
        self._quantiles: tuple[float | None, float | None] = (None, None)

    def snapshot(self) -> NodeMetrics:
        """Return the current metrics; rates and latencies are of the last completed interval."""
        now = self._clock()
        elapsed = now - self._since
        buckets = self.buckets
        if any(buckets):
            self._quantiles = _quantile(buckets, 0.5), _quantile(buckets, 0.99)
        # An announcement between two heartbeats, at a status change, must not report the rate of a few milliseconds.
        if elapsed >= self._interval / 2:
            before, self._before = self._before, (self.messages_in, self.messages_out)
            self._rates = (self.messages_in - before[0]) / elapsed, max(0, self.messages_out - before[1]) / elapsed
            self._since = now
            buckets[:] = [0] * len(buckets)  # in place: the node holds a reference to the list
        return NodeMetrics(
            messages_in=self.messages_in,
            messages_out=self.messages_out,
            rate_in=self._rates[0],
            rate_out=self._rates[1],
            queued=self.queued(),
            dropped=self.dropped + self.unsent,
            gaps=self.gaps,
            missing=self.missing,
            errors=self.errors,
            undecodable=self.undecodable,
            latency_p50_ms=self._quantiles[0],
            latency_p99_ms=self._quantiles[1],
        )


def _quantile(buckets: list[int], share: float) -> float:
    """Return a quantile in milliseconds: the geometric middle of its bucket."""
    wanted = share * sum(buckets)
    for at, count in enumerate(buckets):  # noqa: B007 - the last value is used below
        wanted -= count
        if wanted <= 0:
            break
    middle = BOUNDS[min(at, len(BOUNDS) - 1)] * 2 ** (-0.5 / _STEPS_AN_OCTAVE)
    return middle * 1000
