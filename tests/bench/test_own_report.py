"""What a page of one's own brokers says."""

from __future__ import annotations

from typing import Any

import pytest

from msight_bus.bench.compare import Row
from msight_bus.bench.own_report import comparison, page


def _row(backend: str, *values: float | None, what: str = "throughput", **more: float) -> dict[str, Any]:
    row = Row(what, "it", backend)
    for value in values:
        if value is None:
            row.runs.append(None)
            row.voids.append("2 came.")
        else:
            row.add({"rate": value, "p50": value, "slip_p50": 0.0, **more})
    return row.as_dict()


def test_a_ratio_is_taken_within_each_round():
    first, other = _row("redis", 100.0, 10.0, 1000.0), _row("nats", 50.0, 6.0, 700.0)
    assert comparison(other, [first, other], "rate") == "0.60 (0.50–0.70)"
    assert comparison(first, [first, other], "rate") == ""


def test_void_rounds_go_with_their_partner():
    first, other = _row("redis", None, 10.0), _row("nats", 50.0, 5.0)
    assert comparison(other, [first, other], "rate") == "0.50 (0.50–0.50)"
    nothing = _row("nats", 5.0, None)
    assert comparison(nothing, [first, nothing], "rate") == ""


@pytest.mark.parametrize(("rate", "shown"), [(95.0, "≈ 0.95 (0.95–0.95)"), (80.0, "0.80 (0.80–0.80)")])
def test_a_difference_inside_the_a_a_band_is_marked(rate, shown):
    rows = [_row("redis", 100.0), _row("nats", rate), _row("redis again", 90.0)]
    assert comparison(rows[1], rows, "rate") == shown
    assert "≈" not in comparison(rows[2], rows, "rate")


def test_a_late_sender_and_a_void_run_are_said():
    names = ("min", "p90", "p99", "p99.9", "max", "samples")
    late = _row("nats", 100.0, what="latency", **dict.fromkeys(names, 200.0))
    slow = _row("redis", 100.0, what="latency", **{**dict.fromkeys(names, 200.0), "slip_p50": 11.0})
    result = {
        "started": "2026-01-02T03:04:05+00:00",
        "command": "msight-bus bench",
        "machine": {"cpu": "a processor", "cpus": 2, "system": "Linux", "python": "CPython 3.11.7"},
        "versions": {},
        "rounds": 1,
        "backends": {"nats": ""},
        "measurements": [late, slow, _row("kafka", None, what="latency")],
    }
    whole = page(result)
    assert "redis *" in whole
    assert "nats *" not in whole
    assert "2 came." in whole
    assert "no result" in whole
