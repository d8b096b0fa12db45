"""What a result says about the figures to reach."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.interleaving import summary
from benchmarks.targets import Verdict, comparisons, undecidable, verdicts


def _row(what: str, candidate: str, values: list[float | None], figure: str, disturbed: tuple[int, ...] = ()) -> Any:
    runs = [None if value is None else {figure: value} for value in values]
    size = 1024 if what == "latency" else 128
    return {"what": what, "size": size, "candidate": candidate, "runs": runs, "disturbed": list(disturbed)}


def _judged(*rows: Any, backend: str = "redis") -> dict[str, Verdict]:
    return {verdict.title: verdict for verdict in verdicts({"backends": {backend: {"measurements": list(rows)}}})}


def test_a_ratio_is_taken_within_each_round():
    found = _judged(
        _row("subscribe", "ceiling", [100.0, 1000.0, 10.0], "rate"),
        _row("subscribe", "bus", [80.0, 790.0, 9.0], "rate"),
    )
    verdict = found["subscribe 128 B / ceiling"]
    assert verdict.ratio == pytest.approx(0.8)
    assert (verdict.low, verdict.high) == pytest.approx((0.79, 0.9))
    assert verdict.state == "pass"


def test_a_rate_below_its_bound_fails():
    found = _judged(_row("subscribe", "ceiling", [100.0], "rate"), _row("subscribe", "bus", [69.0], "rate"))
    assert found["subscribe 128 B / ceiling"].state == "FAIL"


@pytest.mark.parametrize(("again", "kept"), [(1.0, True), (1.04, True), (1.06, False)])
def test_the_99th_percentile_is_no_row_if_the_noise_is_wider_than_the_margin(again, kept):
    """Bus / ceiling is 1.10, the bound 1.15; the same holds for a miss of 1.20. p50 stays."""
    for bus in (110.0, 120.0):
        rows = [
            _row("latency", "ceiling", [100.0, 100.0], "p99"),
            _row("latency", "ceiling again", [100.0, 100.0 * again], "p99"),
            _row("latency", "bus", [bus, bus], "p99"),
        ]
        rows = [row | {"runs": [run | {"p50": 1.0} for run in row["runs"]]} for row in rows]
        result = {"backends": {"redis": {"measurements": rows}}}
        title = "latency 1 KiB p99 / ceiling"
        assert (title in _judged(*rows)) is kept
        assert [verdict.title for verdict in undecidable(result)] == ([] if kept else [title])
        assert "latency 1 KiB p50 / ceiling" in _judged(*rows)


def test_void_rounds_go_with_their_partner():
    found = _judged(
        _row("subscribe", "ceiling", [None, 100.0], "rate"), _row("subscribe", "bus", [500.0, 80.0], "rate")
    )
    verdict = found["subscribe 128 B / ceiling"]
    assert (verdict.ratio, verdict.rounds) == (pytest.approx(0.8), 1)


def test_a_reference_that_never_ran_gives_no_result():
    found = _judged(_row("subscribe", "bus", [500.0], "rate"))
    assert {verdict.state for verdict in found.values()} == {"no result"}


def test_many_topics_are_held_against_one_topic():
    found = _judged(
        _row("topics", "one topic", [100.0], "rate"),
        _row("topics", "round-robin", [59.0], "rate"),
        _row("topics", "runs of 64", [81.0], "rate"),
    )
    states = {title: verdict.state for title, verdict in found.items()}
    assert states == {
        "many topics, round-robin / one topic": "FAIL",
        "many topics, runs of 64 / one topic": "pass",
    }


@pytest.mark.parametrize(("again", "state"), [(100.0, "pass"), (85.0, "disturbed"), (115.0, "disturbed")])
def test_a_machine_that_could_have_turned_a_row_decides_nothing(again, state):
    rows = [_row("subscribe", "ceiling", [100.0], "rate"), _row("subscribe", "ceiling again", [again], "rate")]
    found = _judged(*rows, _row("subscribe", "bus", [75.0], "rate"))
    assert found["subscribe 128 B / ceiling"].state == state
    far = _judged(*rows, _row("subscribe", "bus", [300.0], "rate"))
    assert far["subscribe 128 B / ceiling"].state == "pass"


def test_a_comparison_has_no_target():
    rows = [_row("subscribe", "bus", [100.0], "rate"), _row("subscribe", "bus on asyncio", [50.0], "rate")]
    (verdict,) = comparisons({"backends": {"redis": {"measurements": rows}}})
    assert (verdict.ratio, verdict.state) == (2.0, "no target")


def _latencies(ours: list[float], again: list[float], disturbed: tuple[int, ...] = ()) -> list[Any]:
    rows = [
        _row("latency", "ceiling", [100.0] * len(ours), "p50"),
        _row("latency", "bus", ours, "p50", disturbed),
        _row("latency", "ceiling again", again, "p50"),
    ]
    for row in rows:
        for run in row["runs"]:
            run["p99"] = run["p50"]
    return rows


def test_kafka_is_held_against_the_a_a_band():
    assert _judged(*_latencies([110.0], [112.0]), backend="kafka")["latency 1 KiB p50 / ceiling"].state == "pass"
    assert _judged(*_latencies([110.0], [105.0]), backend="kafka")["latency 1 KiB p50 / ceiling"].state == "FAIL"


def test_the_band_leaves_outliers_out():
    verdict = _judged(*_latencies([110.0] * 5, [900.0, 108.0, 104.0, 102.0, 1.0]), backend="kafka")
    assert verdict["latency 1 KiB p50 / ceiling"].band == pytest.approx((1.02, 1.08))


def test_disturbed_rounds_do_not_count_while_there_are_others():
    verdict = _judged(*_latencies([900.0, 110.0], [100.0, 100.0], (0,)))["latency 1 KiB p50 / ceiling"]
    assert (verdict.ratio, verdict.state) == (pytest.approx(1.1), "pass")


def test_nothing_but_disturbed_rounds_decides_nothing():
    verdict = _judged(*_latencies([110.0], [100.0], (0,)))["latency 1 KiB p50 / ceiling"]
    assert verdict.state == "disturbed"


def test_a_percentile_at_which_the_sender_was_late_decides_nothing():
    rows = _latencies([110.0], [100.0])
    rows[1]["runs"][0]["slip_p99"] = 50.0
    found = _judged(*rows)
    assert found["latency 1 KiB p50 / ceiling"].state == "pass"
    assert found["latency 1 KiB p99 / ceiling"].state == "disturbed"


def test_a_summary_has_median_and_spread():
    assert summary([{"rate": 3.0}, {"rate": 1.0}, {"rate": 2.0}]) == {"rate": {"median": 2.0, "min": 1.0, "max": 3.0}}
