"""What a result says about the figures to reach."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.targets import Verdict, verdicts


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


def test_void_rounds_go_with_their_partner():
    found = _judged(
        _row("subscribe", "ceiling", [None, 100.0], "rate"), _row("subscribe", "bus", [500.0, 80.0], "rate")
    )
    verdict = found["subscribe 128 B / ceiling"]
    assert (verdict.ratio, verdict.rounds) == (pytest.approx(0.8), 1)


def test_a_reference_that_never_ran_gives_no_result():
    found = _judged(_row("subscribe", "bus", [500.0], "rate"))
    assert {verdict.state for verdict in found.values()} == {"no result"}


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
