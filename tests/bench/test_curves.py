"""Curves end where a rate is not held, and say why."""

from __future__ import annotations

import time

import pytest

from msight_bus.bench import curves
from msight_bus.bench.bus_sides import BusSubscriber
from msight_bus.bench.candidates import Side
from msight_bus.bench.curves import RATE_CURVE_SIZE, Pair, by_rate, by_size, room
from msight_bus.bench.jobs import STAMP
from msight_bus.bench.own_broker import fresh_topic, sides
from msight_bus.bench.stage import Stage

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
def stage(nats):
    with Stage({**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}) as made:
        yield made


def _pairs(stage, subscriber=None):
    publisher, own = sides("uvloop")
    return {"bus": Pair(publisher, subscriber or own, stage, lambda _: fresh_topic())}


def test_latency_by_rate_counts_every_message(stage, monkeypatch):
    monkeypatch.setattr(curves, "HELD", 0.0)  # a busy machine may not hold a rate
    monkeypatch.setattr(curves, "SATURATED_US", {"p99": 1e12})
    said = []
    curve = by_rate(_pairs(stage), [200, 20_000], 0.2, time.monotonic() + LATER, said.append)["bus"]
    assert said == ["latency at 200/s: bus", "latency at 20,000/s: bus"]
    assert [point["samples"] for point in curve["points"]] == [40, 4000]
    assert (curve["saturated"], curve["end"]) == (False, "")


def test_it_ends_at_the_rate_that_is_not_held(stage):
    slow = Side(f"{__name__}:SlowSubscriber")
    curve = by_rate(_pairs(stage, slow), [1000, 10_000], 0.15, time.monotonic() + LATER, lambda _: None)["bus"]
    assert [point["rate"] for point in curve["points"]] == [1000]
    assert curve["saturated"]
    assert curve["end"].startswith("1,000/s was not held")
    assert curve["points"][0]["held"] < 500


def test_it_ends_where_messages_wait_too_long(stage, monkeypatch):
    monkeypatch.setattr(curves, "HELD", 0.0)
    far = Side(f"{__name__}:FarSubscriber")
    curve = by_rate(_pairs(stage, far), [100, 200], 0.2, time.monotonic() + LATER, lambda _: None)["bus"]
    assert [point["rate"] for point in curve["points"]] == [100]
    assert curve["saturated"]
    assert curve["end"].startswith("100/s has a p99 of")


@pytest.mark.parametrize(("size", "messages"), [(64, 8192), (1 << 20, 7), (1 << 24, 4)])
def test_what_is_on_its_way_is_bounded_in_messages_and_bytes(size, messages):
    assert room(size) == messages


def test_a_side_that_fails_ends_the_curve(stage):
    missing = Side("msight_bus.bench.bus_sides:Nobody")
    curve = by_rate(_pairs(stage, missing), [50, 100], 0.2, time.monotonic() + LATER, lambda _: None)["bus"]
    assert (curve["points"], curve["saturated"]) == ([], False)
    assert "Nobody" in curve["end"]


def test_no_run_begins_when_the_time_is_up(stage):
    found = by_rate(_pairs(stage), [50], 0.2, time.monotonic(), lambda _: None)
    assert found["bus"] == {"points": [], "saturated": False, "end": "the time was up"}
    assert by_size(_pairs(stage), [64], 0.2, time.monotonic(), lambda _: None)["bus"]["points"] == []


def test_throughput_by_size_has_a_point_a_size(stage):
    curve = by_size(_pairs(stage), [64, RATE_CURVE_SIZE], 0.2, time.monotonic() + LATER, lambda _: None)["bus"]
    assert [point["size"] for point in curve["points"]] == [64, 1024]
    assert all(point["rate"] > 0 for point in curve["points"])
