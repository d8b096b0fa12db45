"""``ping``: round trips on every broker, and losses."""

from __future__ import annotations

import json

import pytest

from msight_bus.cli.ping import Pings
from msight_bus.queue_policy import QueuePolicy
from msight_bus.topics import PING_TOPIC
from tests.support.brokers import make_backend, start_broker
from tests.support.commands import command, started


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_round_trips(kind):
    result = command(make_backend(kind), "ping", "-c", "3", "--interval", "0.01", "--timeout", "20", "--json")
    assert result.exit_code == 0
    *each, summary = map(json.loads, result.stdout.splitlines())
    assert [one["number"] for one in each] == [1, 2, 3]
    assert (summary["sent"], summary["lost"]) == (3, 0)
    for name in ("message", "ping"):
        values = sorted(one[f"{name}_ms"] for one in each)
        assert values[0] > 0
        assert (summary[f"{name}_p50_ms"], summary[f"{name}_p99_ms"]) == (values[1], values[2])
    assert summary["difference_p50_ms"] == summary["message_p50_ms"] - summary["ping_p50_ms"]


def test_the_text(nats):
    lines = command(nats, "ping", "-c", "1").stdout.splitlines()
    assert lines[0].startswith("1: message ")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "1 sent, 0 lost (0.0%)",
        "message",
        "PING of the broker",
        "difference of p50, the bus and the event loop",
    ]


async def test_message_and_ping_take_turns_in_being_first_after_a_ping_that_is_not_measured(nats, monkeypatch):
    pings, calls = Pings(20.0, as_json=True), []
    async with (
        nats.connect() as bus,
        bus.core.subscribe((PING_TOPIC,), queue=QueuePolicy.drop_oldest()) as answers,
    ):

        def recorded(owner, name):
            call = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *arguments: calls.append(name) or call(*arguments))

        recorded(bus.core.backend, "ping")
        recorded(bus.core, "publish")
        for _ in range(2):
            await pings.once(bus, answers)
    assert calls == ["ping", "ping", "publish", "ping", "publish", "ping"]
    assert (len(pings.pings), len(pings.messages)) == (2, 2)


async def test_a_message_that_is_not_the_answer_is_not_taken_for_the_answer(memory, monkeypatch):
    """Other processes ping the same broker, and an answer can arrive after the end of its round trip."""
    pings = Pings(20.0, as_json=True)
    async with (
        memory.connect() as bus,
        bus.core.subscribe((PING_TOPIC,), queue=QueuePolicy.drop_oldest()) as answers,
    ):
        publish = bus.core.publish

        async def publish_after_others(topic, payload):
            for each in (b"", b"foreign", payload[::-1], payload):
                await publish(topic, each)

        await publish(PING_TOPIC, b"stale")
        monkeypatch.setattr(bus.core, "publish", publish_after_others)
        await pings.once(bus, answers)
        assert None not in pings.messages
        assert (answers.stats.delivered, answers.queued) == (5, 0)


def test_a_negative_difference_says_what_it_means(capsys):
    pings = Pings(1.0, as_json=False)
    pings.messages, pings.pings = [2.0], [2.5]
    pings.summarize()
    line = "difference of p50, the bus and the event loop: -0.500 ms (measurement noise)"
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_a_broker_that_goes_away_is_a_loss_and_the_command_goes_on():
    broker = start_broker("nats")
    line = "exec msight-bus ping -c 4 --interval 0.2 --timeout 0.2 --json"
    with started(line, make_backend("nats", broker)) as process:
        first = process.stdout.readline()
        broker.stop()
        rest, err = process.communicate(timeout=40)
    *each, summary = map(json.loads, [first, *rest.splitlines()])
    assert process.returncode == 3
    assert len(each) == 4
    assert each[-1]["message_ms"] is each[-1]["ping_ms"] is None
    assert summary["lost"] == [one["message_ms"] for one in each].count(None)
    assert (err.count(", reconnecting: "), err.count("Traceback")) == (1, 0)


def test_no_broker(nats):
    assert command(nats, "ping", MSIGHT_NATS_SERVERS="nats://127.0.0.1:1").exit_code == 3
    assert command(nats, "ping", "-c", "0").exit_code == 2
