"""``msight-bus bench`` measures on the broker that the environment chooses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from msight_bus.bench import scenarios
from msight_bus.bench.jobs import VoidError
from msight_bus.cli import app

COMMAND = [sys.executable, "-m", "msight_bus", "bench"]
QUICK = ("--payload", "64B, 200KB", "--rate", "100", "--seconds", "0.2")


@pytest.fixture
def on_nats(nats, monkeypatch):
    for name, value in nats.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKEND", "nats")


def _run(*arguments: str, status: int = 0):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == status, result.output
    return result


def test_each_payload_has_latency_and_throughput_in_one_table_and_in_the_file(on_nats, tmp_path):
    path = tmp_path / "f.json"
    result = _run(*QUICK, "--json", str(path))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["backend"] == "nats"
    assert written["machine"]["cpus"]
    assert "nats-py" in written["versions"]
    assert [(row["payload"], row["size"]) for row in written["payloads"]] == [("64B", 64), ("200KB", 200_000)]
    for row in written["payloads"]:
        late, fast = row["latency"], row["throughput"]
        assert late["samples"] == 20
        assert 0 < late["min"] <= late["p50"] <= late["p99"] <= late["max"]
        assert fast["rate"] > 0
        assert fast["publisher_peak_bytes"] > 0
    first, second = [line.split() for line in result.stdout.splitlines() if line.startswith(("64B", "200KB"))]
    assert (first[0], second[0]) == ("64B", "200KB")
    assert "64B: latency" in result.stderr


def test_json_on_standard_output_is_alone_there(on_nats):
    result = _run("--payload", "64B", "--seconds", "0.2", "--json", "-")
    assert json.loads(result.stdout)["payloads"][0]["void"] == []
    assert "p99.9" in result.stderr


@pytest.mark.parametrize("backend", ["redis", "kafka"])
def test_the_other_brokers(backend, request, monkeypatch):
    for name, value in request.getfixturevalue(backend).env.items():
        monkeypatch.setenv(name, value)
    assert "1KiB" in _run("--payload", "1KiB", "--seconds", "0.3", "--backend", backend).stdout


@pytest.mark.parametrize(("size", "rate"), [(128, 1000.0), (200_000, 100.0), (100_000_000, 1.0)])
def test_large_payloads_have_a_lower_rate(size, rate):
    assert scenarios.rate_for(size) == rate


def test_a_lost_message_is_exit_status_1_and_said(on_nats, monkeypatch):
    def lost(*_):
        raise VoidError("5 messages were sent and 4 arrived.")

    monkeypatch.setattr("msight_bus.cli.bench.throughput", lost)
    result = _run("--payload", "64B", "--seconds", "0.2", status=1)
    assert "No result: 64B, throughput: 5 messages were sent and 4 arrived." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--payload", "big"], "'big' is not a size"),
        (["--payload", "128B,,1MB"], "'' is not a size"),
        (["--payload", "4B"], "16B"),
        (["--payload", "1GB"], "B, KB, MB, KiB or MiB"),
        (["--payload", "2000MiB"], "1024MiB"),
        (["--rate", "inf"], "not in the range"),
        (["--seconds", "nan"], "seconds"),
        (["--loop", "trio"], "asyncio"),
        (["--backend", "rabbit"], "kafka"),
        (["--backend", "memory"], "this command needs --backend redis, nats or kafka"),
    ],
)
def test_what_cannot_be_measured_is_exit_status_2(arguments, says):
    assert says in _run(*arguments, status=2).output


@pytest.mark.parametrize("backend", ["redis", "nats", "kafka"])
def test_a_payload_over_the_limit_is_refused_before_anything_is_measured(backend, request, monkeypatch):
    for name, value in request.getfixturevalue(backend).env.items():
        monkeypatch.setenv(name, value)
    result = _run("--payload", "64B, 100MB", "--backend", backend, status=2)
    assert "--payload 100MB" in result.stderr
    assert "MSIGHT_MAX_MESSAGE_BYTES" in result.stderr
    assert ": latency" not in result.stderr


def test_a_rate_at_which_no_message_is_due_is_said(on_nats):
    result = _run("--payload", "64B", "--rate", "1", "--seconds", "0.3", status=1)
    assert "No result: 64B, latency: No message is due in 0.375 s at 1/s" in result.stdout


def test_a_broker_that_does_not_answer_is_exit_status_3(monkeypatch):
    monkeypatch.setenv("MSIGHT_NATS_SERVERS", "['nats://127.0.0.1:1']")
    assert "127.0.0.1" in _run("--backend", "nats", status=3).stderr


@pytest.mark.parametrize("path", ["missing/f.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(on_nats, tmp_path, path):
    result = _run("--json", str(tmp_path / path), status=2)
    assert "cannot be written" in result.output
    assert "latency" not in result.stderr


def _in_session(session):
    listed = subprocess.run(["ps", "-A", "-o", "pid=,sid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, sid, state in rows if sid == str(session) and not state.startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_process_stays_when_it_is_ended_in_a_run(nats, number, tmp_path):
    environment = {**os.environ, **nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "30", "--json", str(tmp_path / "f.json")],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while "latency" not in (line := process.stderr.readline()):
            assert line, "it ended before it measured"
        while len(_in_session(process.pid)) < 5:  # itself, resource tracker, fork server, publisher, subscriber
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
        assert process.wait(20) == (-9 if number == signal.SIGKILL else 130)
        said = process.stderr.read()
    assert "Traceback" not in said
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())  # the temporary file of --json
    while _in_session(process.pid):
        time.sleep(0.02)
