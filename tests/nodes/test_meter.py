"""A node's figures, by a clock of the test's own."""

from __future__ import annotations

import pytest

from msight_bus.nodes.meter import Meter


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
    clock.now += 10
    figures = meter.snapshot(queued=3, dropped=2)
    assert (figures.rate_in, figures.rate_out, figures.queued, figures.dropped) == (10, 5, 3, 2)
    meter.messages_in += 20
    clock.now += 10
    assert meter.snapshot(queued=0, dropped=0).rate_in == 2
    clock.now += 10
    assert meter.snapshot(queued=0, dropped=0).rate_in == 0


def test_an_announcement_between_two_heartbeats_keeps_the_rate(clock):
    meter = Meter(10, clock)
    meter.messages_in = 100
    clock.now += 10
    meter.snapshot(queued=0, dropped=0)
    meter.messages_in += 1
    clock.now += 0.001
    assert meter.snapshot(queued=0, dropped=0).rate_in == 10
    meter.messages_in += 19
    clock.now += 9.999
    assert meter.snapshot(queued=0, dropped=0).rate_in == pytest.approx(2)


def test_latencies_are_those_of_the_last_interval_with_any(clock):
    meter = Meter(10, clock)
    figures = meter.snapshot(queued=0, dropped=0)
    assert (figures.latency_p50_ms, figures.latency_p99_ms) == (None, None)
    for i in range(100):
        meter.took(i / 1000)
    clock.now += 10
    figures = meter.snapshot(queued=0, dropped=0)
    assert (figures.latency_p50_ms, figures.latency_p99_ms) == (50, 99)
    clock.now += 10
    assert meter.snapshot(queued=0, dropped=0).latency_p50_ms == 50
    meter.took(0.5)
    clock.now += 10
    assert meter.snapshot(queued=0, dropped=0).latency_p50_ms == 500


def test_the_sample_is_bounded_and_fair(clock):
    meter = Meter(10, clock)
    for i in range(100_000):
        meter.took(i / 100_000)
    assert len(meter._latencies) == 512
    figures = meter.snapshot(queued=0, dropped=0)
    assert figures.latency_p50_ms == pytest.approx(500, abs=130)  # more than five standard deviations
    assert figures.latency_p99_ms > 930


def test_clocks_that_disagree_give_no_latency(clock):
    meter = Meter(10, clock)
    meter.took(-3)
    assert meter.snapshot(queued=0, dropped=0).latency_p50_ms is None


def test_outputs_given_up_are_drops(clock):
    meter = Meter(10, clock)
    meter.unsent = 2
    assert meter.snapshot(queued=0, dropped=1).dropped == 3
