"""``msight-bus bench`` measures on the broker that the environment chooses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from msight_bus.bench.profiles import PROFILES
from msight_bus.cli import app

WIDE = {"COLUMNS": "200"}


@pytest.fixture
def on_nats(nats, monkeypatch):
    for name, value in nats.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKEND", "nats")


def _figures(*arguments: str, path) -> dict:
    result = CliRunner().invoke(app, ["bench", *arguments, "--json", str(path)], env=WIDE)
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert written["backend"] == "nats"
    assert written["machine"]["cpus"]
    assert "nats-py" in written["versions"]
    return written["results"]


def test_latency_counts_every_message(on_nats, tmp_path):
    (figures,) = _figures("latency", "--rate", "200", "--seconds", "0.4", path=tmp_path / "f.json").values()
    assert figures["samples"] == 80
    assert 0 < figures["p50"] <= figures["max"]


def test_throughput_has_both_sides(on_nats, tmp_path):
    found = _figures("throughput", "--size", "128", "--seconds", "0.2", path=tmp_path / "f.json")
    assert found["128 B"]["subscriber"]["rate"] > 0
    assert found["128 B"]["publisher"]["peak_bytes"] > 0


def test_a_profile_is_measured_at_its_own_rate(on_nats, tmp_path):
    found = _figures("profiles", "imu", "--seconds", "0.4", path=tmp_path / "f.json")
    assert found["imu"]["samples"] == 80


def test_the_mix_runs_all_sensors_at_once(on_nats, tmp_path):
    found = _figures("profiles", "mix", "--seconds", "0.4", path=tmp_path / "f.json")
    assert set(found) == {f"mix: {stream.name}" for stream in PROFILES["mix"]}


def test_an_unknown_profile_is_refused_with_the_names_of_all():
    result = CliRunner().invoke(app, ["bench", "profiles", "sonar"], env=WIDE)
    assert result.exit_code == 2
    assert "lidar" in result.output


def test_the_memory_backend_is_refused_with_advice():
    result = CliRunner().invoke(app, ["bench", "latency", "--backend", "memory"], env=WIDE)
    assert result.exit_code == 1
    assert "msight-bus up" in result.output


@pytest.mark.parametrize("command", ["latency", "throughput", "profiles"])
def test_help_has_examples(command):
    result = CliRunner().invoke(app, ["bench", command, "--help"], env=WIDE)
    assert result.exit_code == 0
    assert f"msight-bus bench {command}" in result.output
