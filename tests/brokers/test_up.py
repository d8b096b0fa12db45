"""``msight-bus up``, as a person runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

from msight_bus.brokers import ports

MSIGHT_BUS = [sys.executable, "-m", "msight_bus"]


@pytest.fixture
def up():
    """Start ``msight-bus up``; it is killed after the test."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [*MSIGHT_BUS, "up", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read_until(process, text):
    """Return the lines that a process prints, up to the one with ``text``."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    return pytest.fail(f"ended without saying {text!r}: {''.join(lines)} {process.stderr.read()}")


def pids(text):
    return [int(pid) for pid in re.findall(r"\(process (\d+)\)", text)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_broker_until_it_is_told_to_stop(number, up, is_gone):
    port = ports.free_port()
    process = up("nats", "--port", str(port))
    text = read_until(process, "Ctrl-C stops the broker")
    assert f"on 127.0.0.1:{port} is running" in text
    assert f"export MSIGHT_PUBSUB_BACKEND=nats\nexport MSIGHT_NATS_SERVERS=nats://127.0.0.1:{port}\n" in text
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == f"Stopped nats-server on port {port}.\n"
    assert f"nats: starting nats-server {text.split()[1]} on 127.0.0.1:{port}" in err
    assert is_gone(*pids(text))


def test_all_at_once(up, require_broker, is_gone):
    require_broker("kafka")
    process = up("all")
    text = read_until(process, "Ctrl-C stops the brokers")
    assert re.findall("export MSIGHT_PUBSUB_BACKEND=(.*)", text) == ["redis", "nats", "kafka"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.startswith("Stopped ")
    assert len(pids(text)) == 3
    assert all(is_gone(pid) for pid in pids(text))


def test_a_taken_usual_port_is_left_alone(up):
    with socket.socket() as usual:
        usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            usual.bind(("127.0.0.1", 4222))
            usual.listen()
        except OSError:
            pass  # somebody has it already, which is the case to test
        text = read_until(up("nats"), "Ctrl-C")
    assert "nats://127.0.0.1:" in text
    assert "nats://127.0.0.1:4222" not in text
    assert re.search(r"Port 4222 is in use by another program; nats-server listens on port \d+ instead\.", text)


def test_a_raw_frame_fits_a_message_of_nats(up):
    text = read_until(up("nats", "--port", str(ports.free_port())), "Ctrl-C")
    port = int(re.search(r"nats://127.0.0.1:(\d+)", text)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        info = json.loads(connection.makefile("rb").readline().removeprefix(b"INFO "))
    assert info["max_payload"] >= 1920 * 1080 * 3


def test_a_taken_port_is_an_error(up):
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = up("redis", "--port", str(other.getsockname()[1]))
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "redis was not started" in err
    assert "Address already in use" in err
    assert "Traceback" not in err


def test_a_broker_that_dies_is_reported(up):
    process = up("nats")
    (pid,) = pids(read_until(process, "Ctrl-C"))
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "ended unexpectedly" in err
    assert "Listening for client connections" in err


@pytest.mark.parametrize("arguments", [["all", "--port", "5000"], ["rabbit"], ["redis", "--port", "70000"], []])
def test_wrong_use(arguments, up):
    process = up(*arguments)
    process.communicate(timeout=20)
    assert process.returncode == 2


@pytest.fixture
def up_kafka(tmp_path):
    """Start ``msight-bus up kafka`` with shell scripts for Java and Maven, which write their process ids into files."""

    def start(**scripts):
        (tmp_path / "bin").mkdir()
        for name, script in {"java": "echo 'openjdk version \"17\"' >&2", **scripts}.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho $$ > {tmp_path}/{name}.pid\n{script}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        changed = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        hidden = ("KAFKA_HOME", "JAVA_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in hidden} | changed
        return subprocess.Popen([*MSIGHT_BUS, "up", "kafka"], env=environment, stderr=subprocess.PIPE, text=True)

    return start


FETCHES = "while echo 'Downloaded from there: some://where/x.jar (1 kB at 1 kB/s)'; do sleep 0.05; done"
IS_SILENT = (
    "trap '' TERM INT; echo 'Downloaded from there: some://where/x.jar (1 kB at 1 kB/s)'; while :; do sleep 1; done"
)


@pytest.mark.parametrize("maven", [FETCHES, IS_SILENT])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle(number, maven, up_kafka, tmp_path, is_gone, eventually):  # noqa: PLR0917
    """A signal while Maven fetches, with or without a word: it ends, with what it began, and nothing stays in the cache."""
    with up_kafka(mvn=maven) as process:
        assert any("x.jar" in line for line in process.stderr)
        process.send_signal(number)
        assert "no process is left running" in process.stderr.read()
    assert process.returncode == 130
    assert [path.name for path in (tmp_path / "cache" / "msight-bus").iterdir()] == ["kafka-4.1.0.lock"]
    eventually(lambda: is_gone(int((tmp_path / "mvn.pid").read_text())))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_after_a_second_signal(number, up_kafka, tmp_path, is_gone, eventually):
    with up_kafka(mvn=IS_SILENT) as process:
        assert any("x.jar" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.send_signal(number)
        process.communicate()
    eventually(lambda: is_gone(int((tmp_path / "mvn.pid").read_text())))


def test_stopped_while_a_server_starts(up_kafka, tmp_path, is_gone, eventually):
    """The server is there and does not answer."""
    slow = "case \"$*\" in *-version*) echo 'openjdk version \"17\"' >&2;; *) trap '' TERM INT; while :; do sleep 1; done;; esac"
    maven = "for word; do case $word in -DoutputDirectory=*) cp %s ${word#*=}/x.jar;; esac; done"
    with zipfile.ZipFile(tmp_path / "x.jar", "w"):
        pass
    with up_kafka(java=slow, mvn=maven % (tmp_path / "x.jar")) as process:
        assert any("starting Apache Kafka" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert "no process is left running" in process.stderr.read()
    assert process.returncode == 130
    eventually(lambda: is_gone(int((tmp_path / "java.pid").read_text())))


def test_help_teaches(up):
    out, _ = up("--help").communicate(timeout=20)
    for word in ("redis|nats|kafka|all", "--port", "127.0.0.1", "msight-bus up nats --port 14222", "export"):
        assert word in out
