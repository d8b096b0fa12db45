"""``pub``: what is published, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess

import pytest

from msight_bus.cli import pub
from msight_bus.data import BytesData
from msight_bus.publisher import Publisher
from tests.support.brokers import make_backend
from tests.support.commands import command, receiving, started
from tests.support.rig import own_broker, until
from tests.support.servers import limited


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_text_with_key_and_headers(kind, topic):
    backend = make_backend(kind)
    with receiving(backend, topic) as received:
        options = ["--key", "ne", "--header", "lens=wide", "--header", "a=b=c"]
        result = command(backend, "pub", topic, "--text", "grüße", *options)
        (message,) = received(1)
    assert (result.exit_code, result.stdout) == (0, f"1 message on {topic}\n")
    assert (message.payload.decode(), message.key, dict(message.headers)) == (
        "grüße",
        "ne",
        {"lens": "wide", "a": "b=c"},
    )


def test_lines_of_standard_input(nats, topic):
    with receiving(nats, topic) as received:
        result = command(nats, "pub", topic, "--json", stdin=b"one\ntwo\r\n\nfour")
        messages = received(4)
    assert json.loads(result.stdout) == {"topic": topic, "sent": 4}
    assert [message.payload for message in messages] == [b"one", b"two", b"", b"four"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_standard_input(nats, topic, number):
    with (
        receiving(nats, topic) as received,
        started(f"exec msight-bus pub {topic}", nats, stdin=subprocess.PIPE) as process,
    ):
        process.stdin.write("one\n")
        process.stdin.flush()
        received(1)
        process.send_signal(number)
        process.wait(50)  # standard input is still open
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, f"1 message on {topic}\n", "")


def test_long_lines_of_standard_input(nats, topic):
    lines = [b"a" * 200_000, b"", b"b\rc", b"d" * 200_000]
    with receiving(nats, topic) as received:
        command(nats, "pub", topic, stdin=b"\n".join(lines))
        messages = received(4)
    assert [message.payload for message in messages] == lines


def test_a_file_and_a_count(nats, topic, tmp_path):
    (tmp_path / "frame").write_bytes(bytes(range(256)))
    with receiving(nats, topic) as received:
        result = command(nats, "pub", topic, "--file", str(tmp_path / "frame"), "--count", "3", "--rate", "1000")
        messages = received(3)
    assert result.stdout == f"3 messages on {topic}\n"
    assert {message.payload for message in messages} == {bytes(range(256))}


def test_json_to_a_type(nats, topic):
    with receiving(nats, topic) as received:
        lines = b'{"sensor_name": "lidar", "data": "AAEC", "frame_id": 7}\n{"data": ""}\n'
        result = command(nats, "pub", topic, "--type", "BytesData", stdin=lines)
        first, _ = received(2)
    assert result.exit_code == 0
    assert isinstance(first.data, BytesData)
    assert (first.data.data, first.data.sensor_name, first.data.frame_id) == (b"\0\1\2", "lidar", 7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "{}", "--type", "os.system"], "'os.system' is not a registered class; choose from"),
        (["--text", '{"data": 3}', "--type", "BytesData"], "is not JSON of BytesData: Expected `bytes`"),
        (["--text", "\x1b[2J", "--type", "BytesData"], r"\x1b[2J is not JSON"),
        (["--text", "x", "--header", "novalue"], "novalue is not name=value"),
        (["--text", "x", "--header", "a=b", "--header", "a=c"], "a=c is given twice"),
        (["--text", "x", "--file", "/dev/null"], "--text or --file"),
        (["--file", "/nonexistent"], "does not exist"),
        (["--file", "/dev/zero"], "the file has more than 67,108,864 bytes"),
        (["--file", "/proc/self/mem"], "the file cannot be read: Input/output error"),
        (["--text", "x", "--count", "0"], "0 is not in the range"),
        (["--text", "x", "--rate", "0"], "0.0 is not in the range"),
    ],
)
def test_wrong_usage(nats, topic, arguments, said):
    result = command(nats, "pub", topic, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said.replace("'os.system'", "os.system") in " ".join(result.stderr.split())


def test_a_wrong_name_a_line_that_is_too_long_and_a_refusal(nats, topic):
    assert command(nats, "pub", "a b", "--text", "x").exit_code == 2
    long = command(nats, "pub", topic, stdin=b"x" * 2000, MSIGHT_MAX_MESSAGE_BYTES="1000")
    assert long.exit_code == 2
    assert "a line has more than 1,000 bytes" in " ".join(long.stderr.split())
    large = command(nats, "pub", topic, "--text", "x" * 2000, MSIGHT_MAX_MESSAGE_BYTES="1000")
    assert (large.exit_code, large.stdout) == (1, f"0 messages on {topic}\n")
    assert "too large" in large.stderr


def test_standard_input_that_does_not_block_is_read_to_its_end(nats, topic):
    """Another program with the same terminal or pipe, such as Node.js, can have changed its mode."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with receiving(nats, topic) as received, started(f"exec msight-bus pub {topic}", nats, stdin=reading) as process:
        os.close(reading)
        os.write(writing, b"one\n")
        received(1)
        os.write(writing, b"two\n")
        os.close(writing)
        received(2)
        out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (0, f"2 messages on {topic}\n", "")


def test_standard_input_that_cannot_be_read_is_no_traceback(nats, topic, tmp_path):
    with started(f"msight-bus pub {topic} 0> {tmp_path}/f", nats) as process:
        out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (1, f"0 messages on {topic}\n")
    assert err == "Standard input cannot be read: Bad file descriptor.\n"


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_confirmed_messages_are_counted_although_the_broker_has_died(kind, monkeypatch):
    flush, flushes = Publisher.flush, []

    async def counted(publisher):
        await flush(publisher)
        flushes.append(publisher)

    async def lines(_):
        for line in (b"1", b"2", b"3"):
            yield line
        flushes.clear()
        await until(lambda: len(flushes) > 1)  # the first one can have begun before the last message was sent
        await asyncio.to_thread(broker.kill)
        yield b"4"

    monkeypatch.setattr(Publisher, "flush", counted)
    monkeypatch.setattr(pub, "_lines", lines)
    monkeypatch.setattr(pub, "_CONFIRM_EVERY", 0.01)
    with own_broker(kind) as (broker, backend):
        result = command(backend, "pub", "t", MSIGHT_PUBLISH_TIMEOUT="0.5")
    assert (result.exit_code != 0, result.stdout) == (True, "3 messages on t\n")


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_a_message_without_permission_is_not_counted(kind):
    with limited(kind) as backend:
        refused = command(backend, "pub", "forbidden.t", "--text", "x", "--json")
        fine = command(backend, "pub", "ok.t", stdin=b"1\n2\n3", MSIGHT_MAX_MESSAGE_BYTES="1000")
        partly = command(backend, "pub", "ok.t", stdin=b"1\n2\n" + b"x" * 2000, MSIGHT_MAX_MESSAGE_BYTES="1000")
    assert json.loads(refused.stdout) == {"topic": "forbidden.t", "sent": 0}
    assert (refused.exit_code, "ermission" in refused.stderr) == (3, True), refused.stderr
    assert (fine.exit_code, fine.stdout) == (0, "3 messages on ok.t\n")
    assert (partly.exit_code, partly.stdout) == (2, "2 messages on ok.t\n")
