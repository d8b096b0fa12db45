"""What the commands that look at topics have in common: their examples run, Ctrl-C ends them, and they outlive the broker."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from msight_bus import brokers
from msight_bus.cli import doctor, ping, pub, rates, status, tail, topics
from tests.support.brokers import make_backend, start_broker
from tests.support.commands import publishing, started
from tests.support.waiting import wait_until

EXAMPLES = [
    example
    for text in (
        *(module.EXAMPLES for module in (doctor, status, topics, tail, ping, pub)),
        rates.HZ_EXAMPLES,
        rates.BW_EXAMPLES,
    )
    for example in re.findall(r"^- `(.*?)`:", text, re.MULTILINE)
]
TOPICS = ("site.cam_ne", "site.cam_sw")
WRITING = [
    *("tail {}", "hz {} --json", "bw {}", "ping -c 2 --interval 0.1", "pub {}.out --text x", "topics --observe 0.3"),
    *("doctor {} --observe 0.3", "status --seconds 0.3", "top --seconds 0.3", "settings", "--help"),
]
NOTES = ("Listening for ", "Observing for ", "Topics: ", "Environment OK; ")


def run_example(example, backend, variables):
    """Run an example; interrupt one without an end once it has printed something."""
    with started(example if "|" in example else f"exec {example}", backend, **variables) as process:
        first = process.stdout.readline()
        if not re.search("--count|-c |--seconds|pub |topics|doctor|status", example):
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=50)
    return process.returncode, first + out, err


@pytest.mark.timeout(120)
def test_the_examples_run(nats, kafka):
    kafka_address = {name: value for name, value in kafka.env.items() if "KAFKA" in name}
    payloads = {topic: lambda _: b'{"sensor_name": "ne"}' for topic in TOPICS}
    with publishing(nats, payloads), publishing(kafka, payloads), ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda example: run_example(example, nats, kafka_address), EXAMPLES))
    assert len(results) >= 16
    for example, (exited, out, err) in zip(EXAMPLES, results, strict=True):
        assert exited in ((0, 130) if "doctor" not in example else (0, 1)), f"{example}: {exited} {out} {err}"
        assert out.strip(), f"{example}: {err}"
        assert "Traceback" not in err, f"{example}: {err}"


def outputs(nats, topic, redirection):
    """Return exit status, output and errors of each command that writes, with its standard output redirected."""

    def run(command):
        with started(f"msight-bus {command.format(topic)} {redirection}", nats) as process:
            return process.communicate(timeout=50), process.returncode

    with publishing(nats, {topic: lambda _: b"x"}), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, WRITING))
    return {command: (exited, *said) for command, (said, exited) in zip(WRITING, results, strict=True)}


@pytest.mark.timeout(120)
def test_a_full_disk_is_a_line_and_exit_status_1(nats, topic):
    for command, (exited, _, err) in outputs(nats, topic, "> /dev/full").items():
        *notes, last = err.splitlines()
        assert (exited, last) == (1, "Output cannot be written: No space left on device."), f"{command}: {err}"
        assert all(line.startswith(NOTES) for line in notes), f"{command}: {err}"


@pytest.mark.timeout(120)
def test_a_closed_pipe_ends_the_command_silently(nats, topic):
    for command, (_, out, err) in outputs(nats, topic, "| head -1").items():
        assert out.count("\n") == 1, f"{command}: {out}"
        assert all(line.startswith(NOTES) for line in err.splitlines()), f"{command}: {err}"


@pytest.mark.parametrize("line", ["tail {}", "hz {} --json", "ping --interval 0.1"])
def test_a_closed_pipe_ends_the_command_by_sigpipe(nats, topic, line):
    """As it ends other Unix tools; a shell reports 141."""
    with publishing(nats, {topic: lambda _: b"x"}):
        with started(f"msight-bus {line.format(topic)} | head -1; exit ${{PIPESTATUS[0]}}", nats) as process:
            process.communicate(timeout=50)
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("command", ["tail", "hz"])
@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_the_command_goes_on_when_the_broker_is_back(kind, command, topic):
    broker = start_broker(kind)
    backend = make_backend(kind, broker)
    lines = []

    def read(stream):
        for line in stream:
            lines.append(line)

    try:
        with (
            publishing(backend, {topic: lambda _: b"x"}),
            started(f"exec msight-bus {command} {topic} 2>&1", backend) as process,
            ThreadPoolExecutor(1) as pool,
        ):
            pool.submit(read, process.stdout)
            wait_until(lambda: any(topic in line for line in lines))
            broker.stop()
            wait_until(lambda: any("Disconnected" in line for line in lines))
            broker = brokers.start(kind, port=broker.port)
            wait_until(lambda: any("Reconnected" in line for line in lines))
            back = len(lines)
            wait_until(lambda: any(topic in line for line in lines[back:]))
            process.send_signal(signal.SIGINT)
        assert process.returncode == 130
        assert sum("Disconnected" in line for line in lines) == 1
        assert not any("Traceback" in line for line in lines)
        if command == "hz":
            assert lines[-1].startswith(f"total  {topic}  ")
    finally:
        broker.stop()
