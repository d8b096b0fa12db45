"""Curves end where a rate is not held, and say why; the candidates of a curve understand each other."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks import curves
from benchmarks.catalog import BUS, CEILING, CLIENT, FRAMEWORK
from benchmarks.curves import RATE_CURVE_SIZE, Pair, by_rate, by_size
from benchmarks.runner import Runner
from benchmarks.scale import SMOKE
from msight_bus.bench.jobs import STAMP
from msight_bus.bench.scenarios import PUBLISHER, SUBSCRIBER
from msight_bus.bench.sides import BusSubscriber, Side
from tests.support.brokers import running_broker

LATER = 600.0


class SlowSubscriber(BusSubscriber):
    """Holds about 200 messages a second."""

    async def receive(self, tally):
        tally.observe, observe = lambda payload: (time.sleep(0.005), observe(payload)), tally.observe
        await super().receive(tally)


class FarSubscriber(BusSubscriber):
    """Gets each message 200 ms late."""

    async def receive(self, tally):
        def later(payload):
            intended, number = STAMP.unpack_from(payload)
            observe(STAMP.pack(intended - 200_000_000, number))

        tally.observe, observe = later, tally.observe
        await super().receive(tally)


@pytest.fixture
def runner(nats):
    with Runner({**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}) as made:
        yield made


def _pairs(runner, topic, subscriber=None):
    return {"bus": Pair(Side(PUBLISHER), subscriber or Side(SUBSCRIBER), runner, lambda what: f"{topic}.{what}")}


def test_latency_by_rate_counts_every_message(runner, topic, monkeypatch):
    monkeypatch.setattr(curves, "HELD", 0.0)  # a busy machine may not hold a rate
    monkeypatch.setattr(curves, "SATURATED_US", {"p99": 1e12})
    said = []
    curve = by_rate(_pairs(runner, topic), [200, 20_000], 0.2, time.monotonic() + LATER, said.append)["bus"]
    assert said == ["latency at 200/s: bus", "latency at 20,000/s: bus"]
    assert [point["samples"] for point in curve["points"]] == [40, 4000]
    assert (curve["saturated"], curve["end"]) == (False, "")


def test_it_ends_at_the_rate_that_is_not_held(runner, topic):
    slow = Side(f"{__name__}:SlowSubscriber")
    curve = by_rate(_pairs(runner, topic, slow), [1000, 10_000], 0.15, time.monotonic() + LATER, lambda _: None)["bus"]
    assert [point["rate"] for point in curve["points"]] == [1000]
    assert curve["saturated"]
    assert curve["end"].startswith("1,000/s was not reached")
    assert curve["points"][0]["held"] < 500


def test_it_ends_where_messages_wait_too_long(runner, topic, monkeypatch):
    monkeypatch.setattr(curves, "HELD", 0.0)
    far = Side(f"{__name__}:FarSubscriber")
    curve = by_rate(_pairs(runner, topic, far), [100, 200], 0.2, time.monotonic() + LATER, lambda _: None)["bus"]
    assert [point["rate"] for point in curve["points"]] == [100]
    assert curve["saturated"]
    assert curve["end"].startswith("100/s has a p99 of")


def test_a_side_that_fails_ends_the_curve(runner, topic):
    missing = Side("msight_bus.bench.sides:Nobody")
    curve = by_rate(_pairs(runner, topic, missing), [50, 100], 0.2, time.monotonic() + LATER, lambda _: None)["bus"]
    assert (curve["points"], curve["saturated"]) == ([], False)
    assert "Nobody" in curve["end"]


def test_no_run_begins_when_the_time_is_up(runner, topic):
    found = by_rate(_pairs(runner, topic), [50], 0.2, time.monotonic(), lambda _: None)
    assert found["bus"] == {"points": [], "saturated": False, "end": "the time was up"}
    assert by_size(_pairs(runner, topic), [64], 0.2, time.monotonic(), lambda _: None)["bus"]["points"] == []


def test_throughput_by_size_has_a_point_a_size(runner, topic):
    curve = by_size(_pairs(runner, topic), [64, RATE_CURVE_SIZE], 0.2, time.monotonic() + LATER, lambda _: None)["bus"]
    assert [point["size"] for point in curve["points"]] == [64, 1024]
    assert all(point["rate"] > 0 for point in curve["points"])


@pytest.mark.parametrize("backend", ["redis", "kafka"])
def test_every_candidate_has_a_point(backend):
    broker = running_broker(backend)
    said = []
    with Runner(broker.env) as runner:
        scale = replace(SMOKE, rates=(100,), sizes=(128,), curve_seconds=0.3)
        found = curves.curves(broker, runner, scale, said.append, 600.0)
    for name in (CEILING, CLIENT, BUS):
        (rate,), (size,) = (found[what][name]["points"] for what in ("rate", "size"))
        assert rate["samples"] == 30
        assert size["messages"] > 0
    optional = [found[what][FRAMEWORK] for what in ("rate", "size")]
    assert all(curve["points"] or "faststream" in curve["end"] for curve in optional)
    assert len(said) == 8
