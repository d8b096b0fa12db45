"""``tail``: messages as they arrive, on every broker, without side effects."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading

import msgspec
import pytest

from msight_bus import BytesData
from msight_bus.cli import observing
from msight_bus.cli.tail import Tail
from msight_bus.settings import Limits
from tests.support.brokers import make_backend
from tests.support.commands import command, publishing
from tests.support.terminal import on_a_terminal
from tests.support.waiting import wait_until

BROKERS = ["redis", "nats", "kafka"]


@pytest.mark.parametrize("payload", [bytes(range(256)), b"\xff"])
def test_json_of_bytes_is_base64(nats, topic, payload):
    with publishing(nats, {topic: lambda _: payload}):
        fields = json.loads(command(nats, "tail", topic, "--count", "1", "--json").stdout)
    assert (base64.b64decode(fields["payload"]), fields["encoding"]) == (payload, "base64")
    with publishing(nats, {f"{topic}.text": lambda _: b"ff"}):
        fields = json.loads(command(nats, "tail", f"{topic}.text", "--count", "1", "--json").stdout)
    assert fields["payload"] == "ff"
    assert "encoding" not in fields


def test_json_of_bytes_in_plain_values_is_base64(nats, topic):
    payload = BytesData(data=bytes(range(256)), sensor_name="ne").serialize()
    with publishing(nats, {topic: lambda _: payload}):
        fields = json.loads(command(nats, "tail", topic, "--count", "1", "--json").stdout)
    assert base64.b64decode(fields["payload"]["data"]) == bytes(range(256))
    assert "encoding" not in fields


def track(number):
    return msgspec.msgpack.encode({"data_type": "unknown.module.Track", "number": number, "speeds": [1.5, 2.5]})


@pytest.mark.parametrize("kind", BROKERS)
def test_a_message_is_shown_decoded_with_what_belongs_to_it(kind, topic):
    backend = make_backend(kind)
    with publishing(backend, {topic: track}, headers={"lens": "wide"}, key="ne"):
        shown = command(backend, "tail", topic, "--count", "2")
        listed = command(backend, "tail", topic, "--count", "2", "--json")
    assert (shown.exit_code, listed.exit_code) == (0, 0)
    first, headers, payload, *second = shown.stdout.splitlines()
    assert re.fullmatch(
        rf"{topic}  \d+ B  #\d+ of [0-9a-f]{{16}}  .*key ne  age -?[\d,.]+ \w+  \d\d:\d\d:\d\d\.\d{{3}}", first
    )
    assert bool(re.search(r"  partition \d+ offset \d+  ", first)) == (kind == "kafka")
    assert headers == "  lens: wide"
    assert re.fullmatch(r"  Track\(number=\d+, speeds=\[1\.5, 2\.5\]\)", payload)
    assert len(second) == 3
    one, two = map(json.loads, listed.stdout.splitlines())
    assert (one["topic"], one["key"], one["headers"], one["size"]) == (topic, "ne", {"lens": "wide"}, len(track(1)))
    assert one["payload"]["data_type"] == "unknown.module.Track"
    assert two["sequence"] == one["sequence"] + 1
    assert two["payload"]["number"] == one["payload"]["number"] + 1
    assert one["published_at"] <= one["received_at"] + 1


def test_a_foreign_message_is_shown_as_it_is(redis, topic):
    import redis as client

    port = int(redis.env["MSIGHT_REDIS_MESSAGE_BROKER_PORT"])
    stop = threading.Event()

    def publish():
        with client.Redis(port=port) as foreign:
            while not stop.wait(0.01):
                foreign.publish(topic, b"plain \x1b[31mtext")

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        shown = command(redis, "tail", topic, "--count", "1").stdout
        fields = json.loads(command(redis, "tail", topic, "--count", "1", "--json").stdout)
    finally:
        stop.set()
        publisher.join()
    heading, payload = shown.splitlines()
    assert re.fullmatch(rf"{topic}  15 B  [\d:.]+", heading)
    assert payload == r"  plain \x1b[31mtext"
    assert (fields["session"], fields["sequence"], fields["published_at"]) == (None, None, None)


def test_a_rate_limits_what_is_shown_and_the_others_are_counted(nats, topic):
    with publishing(nats, {topic: lambda _: b"x"}, rate=200):
        result = command(nats, "tail", topic, "--rate", "2", "--seconds", "1.2")
    assert result.exit_code == 0
    assert 1 <= result.stdout.count(topic) <= 3
    counted = [int(number) for number in re.findall(r"… ([\d,]+) messages not shown \(--rate\)", result.stderr)]
    assert len(counted) == 2
    assert sum(counted) > 20


def test_a_filter_selects(nats, topic):
    with publishing(nats, {topic: lambda number: track(number % 100)}, rate=200):  # each number comes again and again
        chosen = command(nats, "tail", topic, "--filter", "number=50", "--count", "1", "--json")
        nothing = command(nats, "tail", topic, "--filter", "number=x", "--seconds", "0.3")
    assert json.loads(chosen.stdout)["payload"]["number"] == 50
    assert (nothing.exit_code, nothing.stdout) == (1, "")


def test_what_arrives_faster_than_it_is_printed_is_dropped_and_counted():
    """Fed without a broker, so that the queue is full whatever the machine's speed."""
    observation = observing.Observation(None, lambda _: None)
    view = Tail(Limits(), None, None, as_json=True)
    observation.dropped = {"drop_oldest": 1234, "invalid topic": 0}.get
    with pytest.MonkeyPatch.context() as patch:
        notes = []
        patch.setattr("msight_bus.cli.tail.note", notes.append)
        view.report(observation, False)
        view.report(observation, True)
    assert notes == ["… 1,234 messages dropped: they arrive faster than they can be printed."]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["site.cam", "--count", "0"], 2, "0 is not in the range x>=1"),
        (["a b"], 2, "'a b' is not a valid topic"),
        (["site.ca*"], 2, "'site.ca*' is not a valid pattern"),
        (["x", "--earliest", "--seconds", "0.1"], 3, "127.0.0.1:1"),
        (["x", "--backend", "memory"], 2, "needs --backend redis, nats or kafka"),
        (["x", "--backend", "carrier-pigeon"], 2, "MSIGHT_PUBSUB_BACKEND"),
        (["x"], 3, "127.0.0.1:1"),
    ],
)
def test_wrong_usage_and_no_broker_are_a_message_and_a_status(arguments, status, said, nats):
    result = command(nats, "tail", *arguments, MSIGHT_NATS_SERVERS="nats://127.0.0.1:1")
    assert result.exit_code == status
    assert said in " ".join(result.stderr.split())


def test_a_topic_without_messages_is_told_once(nats, topic, monkeypatch):
    monkeypatch.setattr(observing, "_HINT_AFTER", 1)
    result = command(nats, "tail", topic, "--seconds", "1.3")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"No message on {topic} yet; waiting. `msight-bus topics` lists the announced topics.",
        f"Shown: 0 of 0 messages received on {topic}.",
    ]


def test_earliest_needs_a_log(nats, topic):
    result = command(nats, "tail", topic, "--earliest", "--seconds", "0.1")
    assert result.exit_code == 2
    assert "--earliest: nats does not keep messages; use --backend kafka." in " ".join(result.stderr.split())


def test_a_missing_topic_is_waited_for_and_not_created(kafka, topic):
    environment = {**os.environ, **kafka.env, "MSIGHT_PUBSUB_BACKEND": "kafka"}
    arguments = [sys.executable, "-m", "msight_bus", "tail", topic, "--count", "1"]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tail:
        assert f"The topic {topic} does not exist on kafka://" in tail.stderr.readline()
        again = command(kafka, "tail", topic, "--seconds", "0.1")  # so the first one has not created it
        assert "does not exist" in again.stderr
        with publishing(kafka, {topic: lambda number: b"%d" % number}):
            said, _ = tail.communicate(timeout=40)
    assert tail.returncode == 0
    assert said.splitlines()[1:] == ["  1"]  # from the first message on


def test_the_oldest_messages_of_a_log(kafka, topic):
    with publishing(kafka, {topic: lambda number: b"%d" % number}, rate=100) as times:
        wait_until(lambda: len(times) >= 5)
    result = command(kafka, "tail", topic, "--earliest", "--count", "3", "--json")
    assert [json.loads(line)["payload"] for line in result.stdout.splitlines()] == ["1", "2", "3"]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_lines_fit_the_terminal(nats, topic, columns):
    payload = msgspec.msgpack.encode({f"number_{number}": 123456789 for number in range(12)})
    with publishing(nats, {topic: lambda _: payload}, headers={"lens": "wide"}):
        environment = {**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}
        status, said = on_a_terminal("tail", topic, "--count", "1", columns=columns, **environment)
    assert status == 0
    assert max(map(len, said.splitlines())) <= columns
    assert said.count("123456789") == said.count("number_")
