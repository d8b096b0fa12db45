"""``msight-bus settings`` tells what there is and what is wrong, and shows no secret."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

from typer.testing import CliRunner

from msight_bus.cli import app
from msight_bus.settings import BusSettings
from tests.support.terminal import on_a_terminal

WIDE = {"COLUMNS": "200"}


def test_it_lists_every_variable_and_says_what_is_chosen(monkeypatch):
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKEND", "nats")
    result = CliRunner().invoke(app, ["settings"], env=WIDE)
    assert result.exit_code == 0
    assert "MSIGHT_KAFKA_PARTITIONS" in result.output
    assert "Environment OK; backend: nats." in result.output


def test_it_can_be_narrowed():
    result = CliRunner().invoke(app, ["settings", "nats"], env=WIDE)
    assert "MSIGHT_NATS_SERVERS" in result.output
    assert "MSIGHT_KAFKA_SERVERS" not in result.output


def test_a_wrong_environment_is_exit_status_2_with_every_problem(monkeypatch):
    monkeypatch.setenv("MSIGHT_REDIS_MESSAGE_BROKER_PORT", "0")
    monkeypatch.setenv("MSIGHT_STRICT", "perhaps")
    monkeypatch.setenv("MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD", "canary")
    result = CliRunner().invoke(app, ["settings", "--check"], env=WIDE)
    assert result.exit_code == 2
    assert "MSIGHT_REDIS_MESSAGE_BROKER_PORT" in result.output
    assert "MSIGHT_STRICT" in result.output
    assert "canary" not in result.output


def test_in_a_pipe_each_variable_is_a_line_with_its_default():
    result = CliRunner().invoke(app, ["settings"], env={"COLUMNS": "20"})
    lines = [line.partition("=") for line in result.stdout.splitlines()]
    assert [(name, *shlex.split(value)) for name, _, value in lines] == [
        (one.name, *filter(None, [one.default])) for one in BusSettings.variables()
    ]
    assert "Environment OK" in result.stderr


def test_a_shell_reads_the_lines_and_the_settings_are_the_same(tmp_path):
    (tmp_path / "settings.env").write_text(CliRunner().invoke(app, ["settings"]).stdout)
    script = 'set -a; . ./settings.env; exec "$0" -c "import os, json; print(json.dumps(dict(os.environ)))"'
    shell = subprocess.run(
        ["sh", "-c", script, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    environ = json.loads(shell.stdout)
    for variable in BusSettings.variables():
        assert environ[variable.name] == (variable.default or "")
    assert BusSettings(environ=environ) == BusSettings(environ={})


def test_each_variable_says_whether_it_is_set(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("x")
    monkeypatch.setenv("MSIGHT_NATS_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("MSIGHT_NATS_USERNAME", "")
    monkeypatch.setenv("MSIGHT_NATS_TLS_FIRST", "no")
    monkeypatch.setenv("MSIGHT_NATS_SERVERS_FILE", "/none")  # means nothing: no secret
    lines = on_a_terminal("settings", "nats", columns=200)[1].splitlines()
    assert {
        "MSIGHT_NATS_TOKEN (MSIGHT_NATS_TOKEN_FILE is set; unset by default)",
        "MSIGHT_NATS_USERNAME (empty, and so unset; unset by default)",
        "MSIGHT_NATS_TLS_FIRST (set; default: false)",
        "MSIGHT_NATS_PASSWORD (unset by default)",
        "MSIGHT_NATS_SERVERS (default: ['nats://localhost:4222'])",
    } <= set(lines)


def test_no_name_is_broken_on_a_narrow_terminal():
    status, text = on_a_terminal("settings", columns=60)
    assert status == 0
    assert max(map(len, text.splitlines())) <= 60
    for variable in BusSettings.variables():
        assert variable.name in text
        assert not variable.secret or f"{variable.name}_FILE" in text


def test_a_name_that_no_variable_contains():
    result = CliRunner().invoke(app, ["settings", "carrier-pigeon"], env=WIDE)
    assert result.exit_code == 2
    assert "no variable has a name that contains 'carrier-pigeon'" in result.output


def test_a_warning_is_a_sentence(monkeypatch):
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKED", "nats")
    result = CliRunner().invoke(app, ["settings", "--check"], env=WIDE)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "Warning: MSIGHT_PUBSUB_BACKED is not a variable of msight_bus and has no effect; did you mean MSIGHT_PUBSUB_BACKEND?",
        "Environment OK, with warnings; backend: redis.",
    ]
