"""Plots are well-formed SVG that says what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from msight_bus.bench.axes import log_axis, time_text
from msight_bus.bench.plot import Bar, Series, apart, bars, lines


def _texts(picture: str) -> list[str]:
    return [text for text in ElementTree.fromstring(picture).itertext() if text.strip()]


def test_every_line_has_its_name_and_a_mark_at_each_point():
    x, y = log_axis("rate", [1.0, 100.0], time_text), log_axis("latency <log>", [10.0, 900.0], time_text)
    picture = lines(x, y, [Series("a & b", "bus", [(1, 10), (100, 900)]), Series("none", "client", [])], "it")
    assert {"a & b", "rate", "latency <log>"} <= set(_texts(picture))
    assert "none" not in _texts(picture)
    assert picture.count("<circle") == 3  # one of them beside the name


def test_a_rate_that_was_not_held_is_hollow():
    axis = log_axis("", [1.0, 100.0], time_text)
    points = [(1.0, 1.0), (10.0, 100.0)]
    assert lines(axis, axis, [Series("", "bus", points, open_end=True)], "").count("hollow") == 1
    assert "hollow" not in lines(axis, axis, [Series("", "bus", points)], "")


def test_bars_begin_at_zero():
    half, whole = (
        float(rect.get("width", 0))
        for rect in ElementTree.fromstring(
            bars([Bar("a", "bus", 5, 5, 5, ""), Bar("b", "bus", 10, 10, 10, "")], "")
        ).iter()
        if rect.tag == "rect"
    )
    assert whole == pytest.approx(2 * half)


def test_labels_keep_apart_and_in_order():
    assert apart([10, 11, 12], 5, 0, 100) == [10, 15, 20]
    assert apart([99, 98], 5, 0, 100) == [100, 95]
    assert apart([50, 10], 5, 0, 100) == [50, 10]
