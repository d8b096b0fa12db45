"""Where values lie on an axis and how they are written."""

from __future__ import annotations

import pytest

from msight_bus.bench.axes import bytes_text, count_text, log_axis, percentile_axis, size_axis, time_text


def test_a_logarithmic_axis_ends_at_the_next_1_2_or_5():
    axis = log_axis("", [130.0, 480.0], time_text)
    assert (axis.low, axis.high) == (100, 500)
    assert [text for _, text in axis.ticks] == ["100 µs", "200 µs", "500 µs"]
    assert axis.share(100) == 0
    assert axis.share(500) == 1
    assert axis.share(100 * 5**0.5) == pytest.approx(0.5)


def test_a_value_on_a_tick_is_not_cut_off():
    axis = log_axis("", [100.0, 500.0], time_text)
    assert axis.low == 100
    assert axis.high > 500


def test_many_decades_have_labels_at_whole_decades_only():
    axis = log_axis("", [60.0, 900_000.0], time_text)
    assert [text for _, text in axis.ticks] == ["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]
    assert 50 in axis.minor


def test_values_outside_are_put_on_the_ends():
    axis = log_axis("", [10.0, 90.0], count_text)
    assert (axis.share(0.0), axis.share(1e9)) == (0, 1)


def test_nothing_measured_is_still_an_axis():
    assert log_axis("", [0.0], count_text).share(1.0) == 0


def test_nines_are_equally_far_apart():
    axis = percentile_axis(10_000)
    p90, p99, p999 = (axis.share(value) for value in (0.9, 0.99, 0.999))
    assert p99 - p90 == pytest.approx(p999 - p99)
    assert axis.share(0.0) == 0


def test_percentiles_that_so_few_messages_cannot_have_are_not_shown():
    assert [name for _, name in percentile_axis(100).ticks] == ["fastest", "p50", "p90", "p99"]


def test_sizes_have_a_tick_each():
    axis = size_axis([64, 4096])
    assert [text for _, text in axis.ticks] == ["64 B", "4 KiB"]
    assert [axis.share(size) for size in (64, 512, 4096)] == pytest.approx([0, 0.5, 1])
    assert size_axis([64]).share(64) == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(64, "64 B"), (1000, "1,000 B"), (131072, "128 KiB"), (1_000_000, "1 MB"), (1 << 20, "1 MiB")],
)
def test_sizes_are_written_as_people_choose_them(size, text):
    assert bytes_text(size) == text
