"""Rates, jitter and sizes, from arrivals whose times are given."""

from __future__ import annotations

import pytest

from msight_bus.cli.topic_rates import TopicRates
from msight_bus.message import Message


def arrive(rates, times, size=200_000, topic="t"):
    for at in times:
        rates.clock = lambda at=at: at
        rates.add(Message(topic, bytes(size)))


def seconds_of(rates, hertz, begin, seconds):
    """Feed whole seconds, as the command does."""
    for second in range(seconds):
        arrive(rates, [begin + second + tick / hertz for tick in range(hertz)])
        rates.turn()


def test_a_camera():
    rates = TopicRates(5, 10)
    seconds_of(rates, 30, 1000.0, 20)
    for arrivals, count in ((rates.recent()["t"], 150), (rates.total()["t"], 600)):
        figures = arrivals.figures(1020.0)
        assert figures["rate"] == pytest.approx(30, rel=1e-3)
        assert figures["megabytes_rate"] == pytest.approx(6, rel=1e-3)
        assert figures["jitter_ms"] == pytest.approx(0, abs=0.05)
        assert figures["longest_ms"] == pytest.approx(1000 / 30, rel=1e-3)
        assert (figures["mean_bytes"], figures["largest_bytes"], figures["messages"]) == (200_000, 200_000, count)


def test_jitter_is_the_standard_deviation_of_the_intervals():
    rates = TopicRates(5, 10)
    arrive(rates, [0.0, 0.01, 0.04, 0.05, 0.08])  # intervals of 10 and 30 ms in turn
    figures = rates.recent()["t"].figures(0.08)
    assert (figures["jitter_ms"], figures["longest_ms"]) == (pytest.approx(10), pytest.approx(30))


def test_a_stream_that_ends_slows_down_and_is_zero_after_the_window():
    rates = TopicRates(5, 10)
    seconds_of(rates, 30, 0.0, 5)
    shown = []
    for now in range(6, 11):
        rates.turn()
        shown.append(rates.recent()["t"].figures(now)["rate"])
    assert shown == sorted(shown, reverse=True)
    assert (shown[0] < 30, shown[-1]) == (True, 0.0)
    assert rates.total()["t"].count == 150


def test_a_rate_from_one_message_is_not_known():
    rates = TopicRates(5, 10)
    arrive(rates, [1.0], size=7)
    figures = rates.recent()["t"].figures(2.0)
    assert [name for name, value in figures.items() if value is None] == [
        "rate",
        "megabytes_rate",
        "jitter_ms",
        "longest_ms",
    ]
    assert figures["mean_bytes"] == 7


def test_an_interval_across_seconds_counts():
    rates = TopicRates(5, 10)
    arrive(rates, [0.0])
    for _ in range(3):
        rates.turn()
    arrive(rates, [3.5])
    assert rates.total()["t"].figures(3.5)["longest_ms"] == 3500


def test_topics_beyond_the_limit_are_only_counted():
    rates = TopicRates(5, 2)
    for topic in ("a", "b", "c", "a", "d"):
        arrive(rates, [1.0], topic=topic)
    assert (sorted(rates.total()), rates.others) == (["a", "b"], 2)
