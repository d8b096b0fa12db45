"""``hz`` and ``bw``: true figures on every broker, as a table on a terminal and as lines elsewhere."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from rich.console import Console

from msight_bus.cli.rates import _BOTH, _BW, _HZ, Display
from msight_bus.cli.topic_rates import TopicRates
from msight_bus.message import Message
from tests.support.brokers import make_backend
from tests.support.commands import command, publishing
from tests.support.terminal import on_a_terminal

FRAME = bytes(200_000)


def measured(backend, topic, times, name):
    """Return the figures of the whole time, and those of a ledger of the same messages."""
    begun = len(times)
    result = command(backend, name, topic, "--seconds", "3", "--json")
    assert result.exit_code == 0
    ended = len(times)
    *_, last = map(json.loads, result.stdout.splitlines())
    assert (last["topic"], last["total"], last["missing"]) == (topic, True, 0)
    ticks = range(max(1, begun), ended)
    return last, (len(ticks) - 1) / (times[ticks[-1]] - times[ticks[0]])


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_the_figures_agree_with_a_ledger_within_one_percent(kind, topic):
    backend = make_backend(kind)
    with publishing(backend, {topic: lambda _: FRAME}) as times:
        for attempt in range(3):  # a busy machine delays the first or the last message of a measurement
            hz, rate = measured(backend, topic, times, "hz" if attempt % 2 == 0 else "bw")
            if hz["rate"] == pytest.approx(rate, rel=0.01):
                break
    assert hz["rate"] == pytest.approx(rate, rel=0.01)
    assert hz["megabytes_rate"] == pytest.approx(rate * 0.2, rel=0.01)
    assert (hz["mean_bytes"], hz["largest_bytes"]) == (200_000, 200_000)


def test_steps_of_the_wall_clock_change_no_figure(nats, topic, monkeypatch):
    wall, hour = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: wall() + 3600 * hour[0])

    def step(number):
        hour[0] = number // 10 % 2  # forward and back, every ten messages
        return FRAME

    with publishing(nats, {topic: step}) as times:
        hz, rate = measured(nats, topic, times, "hz")
        listed = command(nats, "topics", "--observe", "2", "--json").stdout.splitlines()
    observed = next(one["observed"] for one in map(json.loads, listed) if one["topic"] == topic)
    for figures in (hz, observed):
        assert figures["rate"] == pytest.approx(rate, rel=0.3)
        assert figures["longest_ms"] < 3_000_000
        assert figures["jitter_ms"] < 100_000


def test_lines_without_a_terminal(nats, topic):
    with publishing(nats, {topic: lambda _: FRAME}):
        hz = command(nats, "hz", topic, "--seconds", "1.5").stdout.splitlines()
        bw = command(nats, "bw", topic, "--count", "5").stdout.splitlines()
    assert len(hz) == 2
    rest = r"msg/s [\d.]+  jitter ms [\d.]+  longest ms [\d.,]+  messages \d+  missing 0"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  {topic}  {rest}", hz[0])
    assert re.fullmatch(rf"total  {topic}  {rest}", hz[1])
    assert re.fullmatch(
        rf"total  {topic}  MB/s [\d.?]+  mean B 200,000  largest B 200,000  messages \d+  missing 0", bw[-1]
    )


def test_without_a_message_the_status_is_1(nats, topic):
    result = command(nats, "hz", topic, "--seconds", "0.2")
    assert result.exit_code == 1
    assert (result.stdout, result.stderr) == (f"total  {topic}  no message\n", f"No message on {topic}.\n")


@pytest.mark.parametrize("name", ["hz", "bw"])
def test_a_silent_topic_or_pattern_is_a_line_each_second_and_at_the_end(nats, topic, name):
    silent = [f"{topic}.silent", f"{topic}.none.*"]
    entries = [f"{topic}.*", f"{topic}.site", *silent]
    with publishing(nats, {f"{topic}.site": lambda _: b"x"}):
        text = command(nats, name, *entries, "--seconds", "1.5").stdout.splitlines()
        listed = command(nats, name, *entries, "--seconds", "1.5", "--json").stdout.splitlines()
    assert [line.split("  ")[1:] for line in text if "no message" in line] == [
        [entry, "no message"] for entry in sorted(silent)
    ] * 2
    assert sum(f"  {topic}.site  " in line for line in text) == 2
    rows = [json.loads(line) for line in listed]
    assert [(one["topic"], one["total"], one["rate"]) for one in rows if not one["messages"]] == [
        (entry, total, 0.0) for total in (False, True) for entry in sorted(silent)
    ]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("figures", [_HZ, _BW], ids=["hz", "bw"])
def test_the_table_fits(columns, figures):
    rates = TopicRates(5, 100)
    topic = "intersection.huron-plymouth.cam_ne"
    for tick in range(2000):
        rates.clock = lambda tick=tick: tick / 123_456
        rates.add(Message(topic, bytes(1000)))
    for number in range(90):
        rates.add(Message(f"t{number}", b""))
    out = Console(file=io.StringIO(), width=columns, height=30, force_terminal=True, color_system=None)
    display = Display(figures | _BOTH, rates, live=None, as_json=False)
    display._out = out
    rows = {topic: {**arrivals.figures(1999 / 123_456), "missing": 0} for topic, arrivals in rates.recent().items()}
    out.print(display._table(rows, every=False))
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 30
    text = "\n".join(lines)
    assert re.search(r"… and \d+ more", text)
    assert ("123,456.00" in text) == (figures is _HZ)
    assert ("123.456" in text) == (figures is _BW)
    hidden = "Not shown on" in text
    assert hidden == (columns < 80)
    if not hidden:
        assert "2,000" in text


def test_the_live_table_on_a_terminal(nats, topic):
    with publishing(nats, {topic: lambda _: FRAME}):
        environment = {**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}
        status, said = on_a_terminal("hz", topic, "--seconds", "1.5", columns=60, **environment)
    assert status == 0
    assert max(map(len, said.splitlines())) <= 60
    assert "messages" in said
