"""The benchmark of nodes runs; what it counts is looked at, never how long it took."""

from __future__ import annotations

import pytest

from benchmarks.nodes import ARMS, Pace, measure, nodes, show
from msight_bus import BusSettings, connect


def test_each_arm_runs_in_each_round(capsys):
    said: list[str] = []
    result = measure(["memory"], 2, 1000, 0.0, said.append)
    assert {arm: len(runs) for arm, runs in result["rows"]["memory"].items()} == dict.fromkeys(ARMS, 2)
    assert len(said) == 2 * len(ARMS)
    show(result)
    assert "target 0.60" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
async def test_nodes_on_a_broker(request, topic, kind):
    backend = request.getfixturevalue(kind)
    pace = Pace(1000)
    async with connect(BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": kind, **backend.env})) as bus:
        await nodes(8)(bus, topic, pace)
    assert pace.came == 1000


async def test_a_paced_stream_has_latencies():
    pace = Pace(100, 200.0)
    async with connect(BusSettings(backend="memory")) as bus:
        await nodes(1)(bus, "t", pace)
    assert pace.figures()["p50_us"] > 0
