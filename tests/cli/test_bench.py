"""``msight-bus bench`` measures on the broker that the environment chooses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from msight_bus import brokers
from msight_bus.bench import compare
from msight_bus.bench.profiles import PROFILES
from msight_bus.cli import app
from tests.support.brokers import make_backend

WIDE = {"COLUMNS": "200"}
NOWHERE = {
    "MSIGHT_REDIS_MESSAGE_BROKER_PORT": "1",
    "MSIGHT_NATS_SERVERS": "['nats://127.0.0.1:1']",
    "MSIGHT_KAFKA_SERVERS": "['127.0.0.1:1']",
}


@pytest.fixture
def on_nats(nats, monkeypatch):
    for name, value in nats.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKEND", "nats")


def _run(*arguments: str, status: int = 0):
    result = CliRunner().invoke(app, ["bench", *arguments], env=WIDE)
    assert result.exit_code == status, result.output
    return result


def _figures(*arguments: str, path) -> dict[str, dict]:
    _run(*arguments, "--json", str(path))
    written = json.loads(path.read_text())
    assert set(written["backends"]) == {"nats"}
    assert written["machine"]["cpus"]
    assert "nats-py" in written["versions"]
    return {row["name"]: row["runs"][0] for row in written["measurements"]}


def test_latency_counts_every_message(on_nats, tmp_path):
    page = tmp_path / "f.html"
    found = _figures("latency", "--rate", "200", "--seconds", "0.4", "--html", str(page), path=tmp_path / "f.json")
    figures = found["1 KiB at 200/s"]
    assert figures["samples"] == 80
    assert 0 < figures["min"] <= figures["p50"] <= figures["max"]
    assert "1 KiB at 200/s" in page.read_text()


def test_json_on_standard_output_is_alone_there(on_nats):
    result = _run("latency", "--rate", "200", "--seconds", "0.2", "--json", "-")
    assert json.loads(result.stdout)["measurements"][0]["what"] == "latency"
    assert "1/1 latency" in result.stderr  # how far it is
    assert "p99.9" in result.stderr  # the table


def test_throughput_has_both_sides(on_nats, tmp_path):
    figures = _figures("throughput", "--size", "128", "--seconds", "0.2", path=tmp_path / "f.json")["128 B"]
    assert figures["rate"] > 0
    assert figures["publisher_peak_bytes"] > 0


def test_a_profile_is_measured_at_its_own_rate(on_nats, tmp_path):
    found = _figures("profiles", "imu", "--seconds", "0.4", path=tmp_path / "f.json")
    assert found["imu"]["samples"] == 80


def test_the_mix_runs_all_sensors_at_once(on_nats, tmp_path):
    found = _figures("profiles", "mix", "--seconds", "0.4", path=tmp_path / "f.json")
    assert set(found) == {f"mix: {stream.name}" for stream in PROFILES["mix"]}


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["profiles", "sonar"], "lidar"),
        (["compare", "--profile", "sonar"], "lidar"),
        (["compare", "--backend", "rabbit"], "kafka"),
        (["latency", "--loop", "trio"], "asyncio"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(arguments, advice):
    assert advice in _run(*arguments, status=2).output


def test_the_memory_backend_is_refused_with_advice():
    assert "msight-bus up" in _run("latency", "--backend", "memory", status=1).output


def test_compare_takes_the_brokers_that_answer_and_says_who_does_not(nats, monkeypatch, tmp_path):
    for name, value in {**NOWHERE, **make_backend("redis").env, **nats.env}.items():
        monkeypatch.setenv(name, value)
    path, page = tmp_path / "f.json", tmp_path / "f.html"
    arguments = ("--profile", "imu", "--size", "128", "--rounds", "2", "--seconds", "0.2")
    result = _run("compare", *arguments, "--json", str(path), "--html", str(page))
    assert "kafka is left out" in result.stderr
    rows = json.loads(path.read_text())["measurements"]
    assert [(row["name"], row["backend"]) for row in rows] == [
        (name, backend) for name in ("imu", "128 B") for backend in ("redis", "nats", "redis again")
    ]
    assert all(len(row["runs"]) == 2 for row in rows)
    assert page.read_text().count("<svg") == 2


def test_a_backend_that_was_asked_for_has_to_answer(monkeypatch):
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    assert "127.0.0.1" in _run("compare", "--backend", "nats", status=1).stderr
    assert "--start" in _run("compare", status=1).stderr


def test_compare_starts_brokers_and_ends_them(nats, monkeypatch, tmp_path):
    started = []
    start = brokers.start
    monkeypatch.setattr(brokers, "start", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    path = tmp_path / "f.json"
    _run(
        "compare", "--start", "--backend", "nats", "--size", "128", "--rounds", "1", "--seconds", "0.2", "--json", path
    )
    (broker,) = started
    assert json.loads(path.read_text())["backends"] == {"nats": f"{broker.name} {broker.version}"}
    assert not broker.is_alive


def test_a_kind_that_is_not_to_be_had_is_left_out_unless_it_was_asked_for(monkeypatch):
    def start(kind, **_):
        raise brokers.NoBrokerError(f"no {kind} here")

    monkeypatch.setattr(brokers, "start", start)
    assert "kafka is left out: no kafka here" in _run("compare", "--start", status=1).stderr
    assert _run("compare", "--start", "--backend", "nats", status=1).stderr.strip() == "no nats here"


def test_curves_are_in_the_result_the_table_and_the_page(on_nats, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "RATES", (100,))
    monkeypatch.setattr(compare, "SIZES", (64,))
    path, page = tmp_path / "f.json", tmp_path / "f.html"
    arguments = ("--backend", "nats", "--profile", "imu", "--rounds", "1", "--seconds", "0.2", "--curves")
    result = _run("compare", *arguments, "--json", str(path), "--html", str(page))
    curves = json.loads(path.read_text())["curves"]
    assert [point["rate"] for point in curves["rate"]["nats"]["points"]] == [100]
    assert [point["size"] for point in curves["size"]["nats"]["points"]] == [64]
    assert "latency by rate" in result.stdout
    assert page.read_text().count("<svg") == 1 + 2 + 2


@pytest.mark.parametrize("command", ["latency", "throughput", "profiles", "compare"])
def test_help_has_examples(command):
    assert f"msight-bus bench {command}" in _run(command, "--help").output
