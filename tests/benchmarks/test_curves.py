"""The candidates of a curve understand each other on every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.catalog import BUS, CEILING, CLIENT, FRAMEWORK
from benchmarks.curves import curves
from benchmarks.scale import SMOKE
from msight_bus.bench.stage import Stage
from tests.support.brokers import running_broker


@pytest.mark.parametrize("backend", ["redis", "kafka"])
def test_every_candidate_has_a_point(backend):
    broker = running_broker(backend)
    said = []
    with Stage(broker.env) as stage:
        scale = replace(SMOKE, rates=(100,), sizes=(128,), curve_seconds=0.3)
        found = curves(broker, stage, scale, said.append, 600.0)
    for name in (CEILING, CLIENT, BUS):
        (rate,), (size,) = (found[what][name]["points"] for what in ("rate", "size"))
        assert rate["samples"] == 30
        assert size["messages"] > 0
    optional = [found[what][FRAMEWORK] for what in ("rate", "size")]
    assert all(curve["points"] or "faststream" in curve["end"] for curve in optional)
    assert len(said) == 8
