"""``doctor``: its text, its exit status, and a check or a broker that fails meanwhile."""

from __future__ import annotations

import json
import re
import signal

import pytest

from msight_bus.cli import observing
from msight_bus.doctor import checks, nodes
from tests.support.brokers import make_backend, start_broker
from tests.support.commands import command, publishing, started


def test_the_text_says_what_is_wrong_and_what_to_do(nats, topic):
    topic += ".unpublished"  # the topic of a test in another process can differ by one letter
    result = command(nats, "doctor", topic, "--observe", "0.2", COLUMNS="200")
    first, fault, todo, verdict = result.stdout.splitlines()
    assert result.exit_code == 1
    assert first == (
        f"{topic}: 0 messages of 0 publishers; published by: none; subscribed by: none; dropped by nodes: 0; gaps: 0"
    )
    assert fault == f"FAULT arrival: No message arrived on {topic} in 0.2 s; no known node or program publishes on it."
    assert todo.startswith("  To do: Start its publisher with nats://127.0.0.1:")
    assert (verdict, result.stderr.splitlines()) == ("Faults found: 1.", ["Observing for 0.2 s."])


def test_the_hint_names_the_topics_of_the_command_line_only(nats, topic, monkeypatch):
    monkeypatch.setattr(observing, "_HINT_AFTER", 1)
    monkeypatch.setattr("msight_bus.program_announcer.INTERVAL", 0.1)
    monkeypatch.setattr("msight_bus.program_announcer.FIRST_AFTER", 0.1)
    with publishing(nats, {f"{topic}.other": lambda _: b"x"}):  # by a program, which announces itself
        result = command(nats, "doctor", topic, "--observe", "2.5", COLUMNS="200")
    assert f"No message on {topic}" in result.stderr
    assert "_msight" not in result.stderr


def test_a_healthy_topic(nats, topic):
    with publishing(nats, {topic: lambda _: b"x"}):
        result = command(nats, "doctor", topic, "--observe", "0.5")
    line, verdict = result.stdout.splitlines()
    assert (result.exit_code, verdict) == (0, "No fault found.")
    assert " messages of 1 publisher; " in line


def test_a_check_that_fails_is_a_note_and_the_others_go_on(nats, topic, monkeypatch):
    def broken(_):
        raise RuntimeError("no idea")

    monkeypatch.setattr(checks, "EVERYWHERE", (broken, nodes.silent))
    result = command(nats, "doctor", topic, "--observe", "0.1", "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()][1:]
    assert [(one["check"], one["fault"]) for one in found] == [("broken", False), ("arrival", True)]
    assert "RuntimeError: no idea" in found[0]["problem"]


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_a_broker_that_goes_away_meanwhile(kind):
    broker = start_broker(kind)
    quickly = {"MSIGHT_CONNECT_TIMEOUT": "1", "MSIGHT_DRAIN_TIMEOUT": "1"}
    with started("exec msight-bus doctor --observe 1 --json", make_backend(kind, broker), **quickly) as process:
        assert "Observing" in process.stderr.readline()
        broker.stop()
        out, err = process.communicate(timeout=40)
    found = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 3
    assert found[-1]["check"] == "broker"
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["doctor {} --observe 50", "status --seconds 50"])
def test_ctrl_c_shows_what_was_found_so_far(nats, topic, command):
    with (
        publishing(nats, {topic: lambda _: b"x"}),
        started(f"exec msight-bus {command.format(topic)}", nats) as process,
    ):
        assert re.match("Observing|Listening", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)
    assert (process.returncode, "Traceback" in err) == (130, False)
    if "doctor" in command:
        assert "Interrupted: not all checks were made." in err
        assert re.match(rf"{topic}: \d+ messages of", out)
        assert re.search(r"^(No fault found so far\.|Faults found so far: \d+\.)$", out, re.MULTILINE)
    else:
        assert out.startswith("Broker: nats ")
        assert "\nNodes: " in out


def test_ctrl_c_lists_the_faults_of_what_was_observed_as_json(nats, topic):
    with started(f"exec msight-bus doctor {topic} --observe 50 --json", nats) as process:
        assert "Observing" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=40)
    line, *found = map(json.loads, out.splitlines())
    assert (process.returncode, line["topic"], [one["check"] for one in found]) == (130, topic, ["arrival"])
