"""How a bus tells the user of its events."""

from __future__ import annotations

import asyncio
import functools
import logging

import pytest

from msight_bus import reporting
from msight_bus.events import Disconnected, Gap
from msight_bus.reporting import Reporter


def events(n: int) -> list[Disconnected]:
    return [Disconnected(str(i)) for i in range(n)]


async def turn() -> None:
    await asyncio.sleep(0)


async def test_events_are_told_in_order_in_a_later_turn():
    told: list[object] = []
    reporter = Reporter(told.append)
    reported = events(3)
    for event in reported:
        reporter.report(event)
    assert told == []
    await turn()
    assert told == reported


async def test_what_is_reported_while_events_are_told_comes_behind_them():
    told: list[object] = []
    first, second, third = events(3)

    def on_event(event):
        told.append(event)
        if event is first:
            reporter.report(third)

    reporter = Reporter(on_event)
    reporter.report(first)
    reporter.report(second)
    await turn()
    assert told == [first, second]
    await turn()
    assert told == [first, second, third]


async def test_a_turn_tells_256_events_at_most():
    told: list[object] = []
    reporter = Reporter(told.append)
    reported = events(600)
    for event in reported:
        reporter.report(event)
    counts = []
    for _ in range(4):
        await turn()
        counts.append(len(told))
    assert counts == [256, 512, 600, 600]
    assert told == reported


async def test_a_turn_tells_256_events_at_most_although_each_brings_another():
    told: list[object] = []

    def on_event(event):
        told.append(event)
        if len(told) <= 300:
            reporter.report(event)

    reporter = Reporter(on_event)
    for event in events(600):
        reporter.report(event)
    counts = []
    for _ in range(5):
        await turn()
        counts.append(len(told))
    assert counts == [256, 512, 768, 900, 900]


async def test_events_that_wait_are_bounded_and_the_rest_is_counted(monkeypatch, caplog):
    monkeypatch.setattr(reporting, "_WAITING", 10)
    told: list[object] = []
    reporter = Reporter(told.append)
    reported = events(15)
    for event in reported:
        reporter.report(event)
    assert reporter.dropped == 5
    await turn()
    assert told == reported[:10]
    assert len(caplog.records) == 3  # the 1st, the 2nd and the 4th
    reporter.report(reported[0])
    await turn()
    assert len(told) == 11


async def test_what_the_callback_raises_is_counted_and_logged_more_and_more_rarely(caplog):
    def on_event(event):
        told.append(event)
        raise ZeroDivisionError

    told: list[object] = []
    reporter = Reporter(on_event)
    for event in events(9):
        reporter.report(event)
    await turn()
    assert (len(told), reporter.errors) == (9, 9)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4  # the 1st, 2nd, 4th and 8th
    assert "ZeroDivisionError" in caplog.text


async def test_a_cancellation_out_of_the_callback_ends_nothing():
    def on_event(event):
        raise asyncio.CancelledError

    reporter = Reporter(on_event)
    for event in events(2):
        reporter.report(event)
    await turn()
    assert reporter.errors == 2


async def test_a_coroutine_that_the_callback_returns_is_closed_and_counted(caplog):
    async def work():
        raise AssertionError("never runs")

    reporter = Reporter(lambda event: work())
    reporter.report(events(1)[0])
    await turn()
    assert reporter.errors == 1
    assert "create_task" in caplog.text


async def test_flushing_tells_what_waits_now():
    told: list[object] = []
    reporter = Reporter(told.append)
    for event in events(300):
        reporter.report(event)
    reporter.flush()
    assert len(told) == 300
    await turn()
    assert len(told) == 300


async def test_without_a_callback_nothing_is_kept():
    reporter = Reporter(None)
    reporter.report(events(1)[0])
    reporter.flush()
    assert reporter.dropped == 0


class Watcher:
    async def method(self, event):
        pass

    async def __call__(self, event):
        pass


@pytest.mark.parametrize(
    "callback",
    [Watcher().method, Watcher(), functools.partial(Watcher().method)],
    ids=["method", "callable object", "partial"],
)
def test_a_coroutine_function_is_refused(callback):
    with pytest.raises(TypeError, match=r"asyncio\.create_task"):
        Reporter(callback)


@pytest.mark.parametrize("callback", [1, "log", []])
def test_what_cannot_be_called_is_refused(callback):
    with pytest.raises(TypeError, match=type(callback).__name__):
        Reporter(callback)


async def test_the_gaps_of_many_topics_leave_room_for_other_events(monkeypatch):
    monkeypatch.setattr(reporting, "_WAITING", 10)
    told: list[object] = []
    reporter = Reporter(told.append)
    for event in (*[Gap("a", None, "reconnect")] * 20, *events(5)):
        reporter.report(event)
    await turn()
    assert (told, reporter.dropped) == ([*[Gap("a", None, "reconnect")] * 5, *events(5)], 15)
