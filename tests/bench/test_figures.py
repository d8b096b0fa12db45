"""What runs come to."""

from __future__ import annotations

import pytest

from msight_bus.bench.figures import SHOWN, between, is_disturbed, percentiles
from msight_bus.bench.usage import Mark


def test_a_rate_is_what_came_between_two_marks():
    found = between(Mark(1_000_000_000, 1.0, 100), Mark(3_000_000_000, 1.5, 1100), 7, 10)
    assert found["rate"] == pytest.approx(500)
    assert found["bytes_rate"] == pytest.approx(5000)
    assert found["cpu_us"] == pytest.approx(500)
    assert (found["messages"], found["peak_bytes"]) == (1000, 7)


def test_percentiles_are_values_that_were_seen():
    found = percentiles(range(0, 1_000_000, 1000), SHOWN)
    assert found == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 999}


def test_percentiles_of_one_value_are_that_value():
    assert set(percentiles([5000], SHOWN, "slip_").values()) == {5}


@pytest.mark.parametrize(("slip", "disturbed"), [(10.0, False), (10.1, True)])
def test_a_late_sender_disturbs(slip, disturbed):
    assert is_disturbed({"p50": 100.0, "slip_p50": slip}) is disturbed
