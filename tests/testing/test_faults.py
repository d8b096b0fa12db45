"""Which fault happens to which delivery."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from msight_bus.testing import Faults
from msight_bus.testing.faults import FAULTS, Injector


def decisions(faults, n=2000):
    injector = Injector(faults)
    return [injector.decide("a") for _ in range(n)]


def test_the_same_seed_gives_the_same_faults_and_another_seed_others():
    faults = Faults(drop=0.1, duplicate=0.1, reorder=0.1, delay=0.1, seed=1)
    assert decisions(faults) == decisions(faults)
    assert decisions(faults) != decisions(Faults(drop=0.1, duplicate=0.1, reorder=0.1, delay=0.1, seed=2))


def test_probabilities_are_what_happens():
    counted = Counter(decisions(Faults(drop=0.1, duplicate=0.2, reorder=0.3, delay=0.05), 20_000))
    wanted = {"drop": 0.1, "duplicate": 0.2, "reorder": 0.3, "delay": 0.05, None: 0.35}
    assert {fault: n / 20_000 for fault, n in counted.items()} == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("fault", FAULTS)
def test_certainty_spares_nothing_and_nothing_is_the_default(fault):
    assert set(decisions(Faults(**{fault: 1.0}))) == {fault}
    assert set(decisions(Faults())) == {None}


def test_commands_come_first_in_order_and_by_topic():
    injector = Injector(Faults())
    injector.inject("drop", "b", 1)
    injector.inject("delay", None, 2)
    injector.inject("reorder", "a", 1)
    assert [injector.decide(topic) for topic in "aaabb"] == ["delay", "delay", "reorder", "drop", None]


def test_lateness_is_bounded():
    injector = Injector(Faults(seconds=0.5))
    assert all(0 <= injector.late() <= 0.5 for _ in range(100))


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": -0.1},
        {"delay": 1.1},
        {"drop": math.nan},
        {"drop": 0.6, "reorder": 0.6},
        {"seconds": 0},
        {"seconds": math.nan},
        {"seconds": math.inf},
    ],
)
def test_what_is_no_probability_or_time_is_refused(wrong):
    with pytest.raises(ValueError, match=r"probabilities|seconds"):
        Faults(**wrong)


@pytest.mark.parametrize(("fault", "times"), [("lose", 1), ("drop", 0)])
def test_what_cannot_be_commanded_is_refused(fault, times):
    with pytest.raises(ValueError, match="fault|times"):
        Injector(Faults()).inject(fault, None, times)
