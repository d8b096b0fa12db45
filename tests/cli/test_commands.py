"""What all commands have in common: version, help, exit status, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from msight_bus import __version__
from msight_bus.cli import app
from msight_bus.cli.exit_status import exit_status
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ConfigError,
    ConnectionLostError,
    HeaderError,
    TopicError,
    UnsupportedError,
)
from tests.support.brokers import Backend
from tests.support.commands import command, receiving, started

_ALL = get_command(app)
OPTIONS = [
    (name, option.opts[0])
    for name in _ALL.list_commands(None)
    for option in _ALL.get_command(None, name).params
    if option.type.name == "float range"
]
COMMANDS = ["up", "topics", "tail", "hz", "bw", "ping", "pub", "top", "settings", "bench"]
MODULE = [sys.executable, "-m", "msight_bus"]
SCRIPT = [str(Path(sys.executable).with_name("msight-bus"))]


@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["-m", "script"])
def test_the_version(program):
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"msight-bus {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_the_exit_status(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert f"msight-bus {command}" in words
    assert "Exit status: 0 done or healthy; 1 a fault was found or the operation failed; 2 wrong usage" in words
    assert "╭" not in result.output  # no boxes without a terminal


@pytest.mark.parametrize(("command", "option"), OPTIONS)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_wrong_usage(command, option, value):
    topics = ["t"] if command in ("bw", "hz", "pub", "tail") else []
    result = CliRunner().invoke(app, [command, option, value, *topics])
    assert (result.exit_code, option in result.output) == (2, True)


def test_help_lists_the_commands():
    output = CliRunner().invoke(app, ["--help"]).output
    assert all(command in output for command in [*COMMANDS, "--version", "Exit status"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BusError("it failed"), 1),
        (UnsupportedError("not here"), 1),
        (ConfigError("MSIGHT_X is wrong"), 2),
        (TopicError("no topic"), 2),
        (HeaderError("no header"), 2),
        (ConnectionLostError("nobody there"), 3),
        (AuthenticationError("refused"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_its_text_and_an_exit_status(error, status, capsys):
    with pytest.raises(BaseException) as caught, exit_status():  # noqa: PT011 - a click Exit, which is no public name
        raise error
    assert caught.value.exit_code == status
    assert capsys.readouterr().err == (f"{error}\n" if str(error) else "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_as_ctrl_c_does_and_its_handler_comes_back(number):
    before = signal.signal(number, lambda *_: None)
    try:
        handler = signal.getsignal(number)
        with pytest.raises(BaseException) as caught, exit_status():  # noqa: PT011
            signal.raise_signal(number)
        assert caught.value.exit_code == 130
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_ignored():
    """``nohup`` ignores SIGHUP, for example."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_status():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_without_utf_8_gets_another_character():
    program = "from msight_bus import __main__, cli; cli.app = lambda **_: print('… and 3 more'); __main__.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "? and 3 more\n"), done.stderr


@pytest.mark.parametrize("columns", ["0", "00", "²"])
def test_a_width_of_no_columns_is_unset(columns):
    environment = {"PATH": os.environ["PATH"], "COLUMNS": columns, "LINES": columns}
    done = subprocess.run(
        [*SCRIPT, "settings", "--check"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Environment OK; backend: redis.\n"), done.stderr


@pytest.mark.parametrize("module", ["typing", "msgspec", "typer"])
@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["-m", "script"])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(program, module, tmp_path):
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*program, "top"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("name", ["MSIGHT_ANNOUNCE", "MSIGHT_KAFKA_CREATE_TOPICS"])
@pytest.mark.parametrize(
    "line", ["tail x", "hz x", "bw x", "topics", "top", "ping", "status", "doctor", "pub x --text y", "bench"]
)
def test_a_wrong_value_is_refused_also_where_the_command_sets_the_variable(line, name):
    result = command(Backend("kafka", {"MSIGHT_KAFKA_SERVERS": "127.0.0.1:1"}), *line.split(), **{name: "maybe"})
    assert result.exit_code == 2
    assert f"{name} must be " in result.output
    assert "it is 'maybe'" in result.output


def test_ctrl_c_in_another_program_that_imports_the_package_is_a_keyboard_interrupt():
    program = "import signal, msight_bus; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("closed", "prints"),
    [("<&-", True), (">&-", False), ("2>&-", True), ("<&- >&-", False), ("<&- >&- 2>&-", False)],
)
def test_closed_standard_streams_are_no_traceback(nats, topic, closed, prints):
    with receiving(nats, topic) as received:
        for options in ("--text x", ""):
            with started(f"msight-bus pub {topic} {options} {closed}", nats, stdin=subprocess.DEVNULL) as process:
                out, err = process.communicate(timeout=50)
            said = "1 message" if options else "0 messages"
            assert (process.returncode, out, err) == (0, f"{said} on {topic}\n" if prints else "", "")
        assert [message.payload for message in received(1)] == [b"x"]
