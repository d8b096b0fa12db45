"""A node's figures, by a clock of the test's own."""

from __future__ import annotations

from bisect import bisect_left

import pytest

from msight_bus.nodes.metrics import BOUNDS, Meter


def took(meter, seconds):
    """Count a latency, as the nodes do."""
    meter.buckets[bisect_left(BOUNDS, seconds)] += 1


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_rates_are_those_of_the_last_interval(clock):
    meter = Meter(10, clock)
    meter.messages_in = 100
    meter.messages_out = 50
    meter.dropped = 2
    meter.queued = lambda: 3
    clock.now += 10
    figures = meter.snapshot()
    assert (figures.rate_in, figures.rate_out, figures.queued, figures.dropped) == (10, 5, 3, 2)
    meter.messages_in += 20
    clock.now += 10
    assert meter.snapshot().rate_in == 2
    clock.now += 9.999  # uvloop's timers fire up to a millisecond early
    assert meter.snapshot().rate_in == 0


def test_an_announcement_between_two_heartbeats_keeps_the_rate(clock):
    meter = Meter(10, clock)
    meter.messages_in = 100
    clock.now += 10
    meter.snapshot()
    meter.messages_in += 1
    clock.now += 0.001
    assert meter.snapshot().rate_in == 10
    meter.messages_in += 19
    clock.now += 9.999
    assert meter.snapshot().rate_in == pytest.approx(2)


def test_latencies_are_those_of_the_last_interval_with_any(clock):
    meter = Meter(10, clock)
    figures = meter.snapshot()
    assert (figures.latency_p50_ms, figures.latency_p99_ms) == (None, None)
    nodes_buckets = meter.buckets
    for i in range(100):
        took(meter, i / 1000)
    clock.now += 10
    figures = meter.snapshot()
    assert figures.latency_p50_ms == pytest.approx(50, rel=0.05)
    assert figures.latency_p99_ms == pytest.approx(99, rel=0.05)
    clock.now += 10
    assert meter.snapshot().latency_p50_ms == pytest.approx(50, rel=0.05)
    nodes_buckets[bisect_left(BOUNDS, 0.5)] += 1
    clock.now += 10
    assert meter.snapshot().latency_p50_ms == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize("seconds", [1e-6, 3e-5, 0.002, 0.07, 1.0, 30.0, 200.0])
def test_a_latency_is_exact_within_5_percent(clock, seconds):
    meter = Meter(10, clock)
    for _ in range(100_000):
        took(meter, seconds)
    assert meter.snapshot().latency_p50_ms == pytest.approx(seconds * 1000, rel=0.05)
    assert meter.snapshot().latency_p99_ms == pytest.approx(seconds * 1000, rel=0.05)


def test_latencies_beyond_the_scale_count_at_its_ends(clock):
    meter = Meter(10, clock)
    took(meter, 0.0)
    assert 0 < meter.snapshot().latency_p50_ms < 0.001
    for _ in range(9):
        took(meter, 1e9)
    assert meter.snapshot().latency_p50_ms > 200_000


def test_outputs_given_up_are_drops(clock):
    meter = Meter(10, clock)
    meter.unsent = 2
    meter.dropped = 1
    assert meter.snapshot().dropped == 3
