"""Every candidate of the benchmark runs on every backend; what it counts is looked at, never how long it took."""

from __future__ import annotations

import importlib.util
import json

import pytest
from rich.console import Console

from benchmarks import decoding
from benchmarks.catalog import BACKENDS, CONFLUENT, CONFLUENT_TUNED, FRAMEWORK, MSIGHT, ZENOH, ZMQ, catalog
from benchmarks.measuring import FORMAT, on, save
from benchmarks.report import show
from benchmarks.scale import SMALL, SMOKE
from benchmarks.targets import verdicts
from msight_bus.bench.machine import describe, versions
from tests.support.brokers import breakable_broker

_OPTIONAL = {
    FRAMEWORK: "faststream",
    MSIGHT: "msight_core",
    CONFLUENT: "confluent_kafka",
    CONFLUENT_TUNED: "confluent_kafka",
    ZMQ: "zmq",
    ZENOH: "zenoh",
}


def test_each_type_is_decoded(capsys, monkeypatch):
    monkeypatch.setattr(decoding, "ROWS", {name: row for name, row in decoding.ROWS.items() if "7 MB" not in name})
    decoding.main(0)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(decoding.ROWS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_candidate_runs_and_every_message_is_counted(backend, tmp_path):
    broker = breakable_broker(backend)
    said: list[str] = []
    measured = on(broker, SMOKE, said.append)

    rows = {(row["what"], row["candidate"]): row for row in measured["measurements"]}
    found = catalog(backend, SMOKE.topics)
    expected = {("latency", name) for name in found.latency}
    expected |= {("subscribe", name) for name in found.subscribers}
    expected |= {("publish", name) for name in found.publishers}
    expected |= {("topics", name) for name in found.topics}
    expected |= {("memory", name) for name in found.memory}
    expected |= {("idle", name) for name in found.idle}
    assert set(rows) == expected
    for (what, name), row in rows.items():
        if name in _OPTIONAL and importlib.util.find_spec(_OPTIONAL[name]) is None:
            assert "No module named" in row["voids"][0]
            continue
        assert row["summary"] is not None, (what, name, row["voids"])
        (run,) = row["runs"]
        if what == "latency":
            assert run["samples"] == (10 if (backend, name) == ("kafka", MSIGHT) else 100)
            assert 0 < run["p50"] <= run["p90"] <= run["p99"] <= run["p99.9"] <= run["max"]
        elif what == "memory":
            assert run["peak_bytes"] >= run["idle_bytes"] > 0
            assert run.get("received", run.get("accepted")) > 0
        elif what == "idle":
            assert run["connections"] > 0
            assert run["requests_rate"] > 0
        else:
            assert row["size"] == SMALL
            assert run["messages"] >= 0
            assert run["peak_bytes"] > 0

    result = {
        "format": FORMAT,
        "scale": "smoke",
        "started": "2026-01-01T00:00:00+00:00",
        "command": "pytest",
        "machine": describe(),
        "versions": versions(),
        "backends": {backend: measured},
    }
    path = save(result, tmp_path / "result.json")
    console = Console(record=True, width=200, quiet=True)
    show(json.loads(path.read_text()), console)
    judged = list(verdicts(result))
    assert len(judged) == (15 if backend == "kafka" else 16)
    for verdict in judged:
        assert verdict.state in {"pass", "FAIL", "disturbed", "no result"}
