"""The inside of a bus: where it can be used, what it keeps, and how it ends."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from msight_bus.backends.base import BLOCKED
from msight_bus.bus import connect
from msight_bus.core import Core
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    CapabilityWarning,
    ClosedError,
    HeaderError,
    PublishTimeoutError,
    UnsupportedError,
)
from msight_bus.events import Disconnected
from msight_bus.message import Message
from msight_bus.settings import BusSettings


class Publisher:
    """Keeps what it is given (backends.base.TopicPublisher)."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.sent: list[bytes] = []
        self.waited: list[bytes] = []
        self.closed = False
        self.blocked = False
        self.outcome: asyncio.Future[None] | None = None

    def try_send(self, payload, key, headers):
        if self.blocked:
            return BLOCKED
        self.sent.append(payload)
        return self.outcome

    async def send(self, payload, key, headers):
        self.waited.append(payload)
        return self.outcome

    def close(self):
        self.closed = True


class Consumer:
    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.closed = False

    async def close(self):
        self.closed = True
        if self.fails:
            raise BusError("by the test")


class Backend:
    """Keeps what is asked of it (backends.base.Backend)."""

    def __init__(self) -> None:
        self.capabilities = SimpleNamespace(persistence=False, load_balancing=False, replay=False)
        self.publishers: dict[str, Publisher] = {}
        self.closed = 0
        self.refuses: BusError | None = None
        self.consumers: list[Consumer] = []
        self.fails = False

    async def open(self):
        if self.refuses is not None:
            raise self.refuses

    def check_topic(self, entry):
        pass

    def publisher(self, topic, name, *, keeps=True):
        made = self.publishers[topic] = Publisher(topic)
        return made

    async def subscribe(self, selection, inbox):
        self.consumers.append(Consumer(self.fails))
        return self.consumers[-1]

    async def close(self):
        self.closed += 1


def core_of(events=None, **variables: str) -> Core:
    settings = BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "redis", **variables})
    return Core(settings, events, opener=lambda settings, report, new_session: Backend())


async def opened(events=None, **variables: str) -> Core:
    core = core_of(events, **variables)
    await core.open()
    return core


# -- where it can be used


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_bus_that_is_not_open_says_how_to_open_one(when):
    core = core_of()
    if when == "after":
        await core.open()
        await core.close()
    assert not core.is_open
    for call in (core.check, lambda: core.subscribe(("t",))):
        with pytest.raises(ClosedError, match=r"async with msight_bus\.connect\(\) as bus"):
            call()
    with pytest.raises(ClosedError):
        await core.publish("t", b"")
    await core.drain(1.0)
    await core.close()


async def test_another_thread_is_told_what_to_do():
    core = await opened()

    def elsewhere():
        try:
            core.check()
        except BusError as error:
            return error
        return None

    error = await asyncio.to_thread(elsewhere)
    assert not isinstance(error, ClosedError)
    for advice in ("asyncio.run_coroutine_threadsafe", "anyio.from_thread.run"):
        assert advice in str(error)
    core.check()
    await core.close()


async def test_another_process_is_told_to_connect(monkeypatch):
    core = await opened()
    own = os.getpid()

    def forked():
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
        try:
            core.check()
        except BusError as error:
            return error
        finally:
            monkeypatch.undo()
        return None

    error = await asyncio.to_thread(forked)  # a child that was forked has no running loop
    assert "connect in the child process" in str(error)
    await core.close()


async def test_a_loop_elsewhere_cannot_close_it():
    core = await opened()
    with pytest.raises(BusError):
        await asyncio.to_thread(asyncio.run, core.close())
    assert (core.is_open, core.backend.closed) == (True, 0)
    await core.close()
    assert core.backend.closed == 1


async def test_a_bus_that_cannot_be_opened_is_closed_and_told_of():
    events: list = []
    core = core_of(events.append)
    core.backend.refuses = AuthenticationError("no")
    core.reporter.report(Disconnected("by the test"))
    with pytest.raises(AuthenticationError):
        await core.open()
    assert core.backend.closed == 1
    assert events == [Disconnected("by the test")]
    with pytest.raises(ClosedError):
        core.check()


# -- publishing


async def test_a_topic_has_one_publisher_and_their_number_is_bounded():
    core = await opened(MSIGHT_PUBLISHER_TOPICS="3")
    made = core.backend.publishers
    for topic in "abab":
        await core.publish(topic, b"x")
    assert made["a"].sent == [b"x", b"x"]
    first = made["a"]
    for topic in "cd":
        await core.publish(topic, b"x")
    assert [topic for topic, publisher in made.items() if not publisher.closed] == ["b", "c", "d"]
    await core.publish("a", b"x")
    assert made["a"] is not first
    await core.close()
    assert all(publisher.closed for publisher in made.values())


async def test_what_finds_no_room_waits_for_it():
    core = await opened()
    await core.publish("t", b"1")
    core.backend.publishers["t"].blocked = True
    await core.publish("t", b"2")
    assert (core.backend.publishers["t"].sent, core.backend.publishers["t"].waited) == ([b"1"], [b"2"])
    await core.close()


async def test_an_acknowledgement_has_a_deadline(msight_simulation):
    core = await opened(MSIGHT_PUBLISH_TIMEOUT="3")
    await core.publish("t", b"")
    outcome = core.backend.publishers["t"].outcome = asyncio.get_running_loop().create_future()
    start = asyncio.get_running_loop().time()
    with pytest.raises(PublishTimeoutError, match="'t'"):
        await core.publish("t", b"")
    assert asyncio.get_running_loop().time() - start == pytest.approx(3, abs=0.1)
    outcome.set_result(None)
    await core.publish("t", b"")
    refused = core.backend.publishers["t"].outcome = asyncio.get_running_loop().create_future()
    refused.set_exception(AuthenticationError("no"))
    with pytest.raises(AuthenticationError):
        await core.publish("t", b"")
    await core.close()


async def test_messages_that_share_an_outcome_have_an_error_of_their_own_each():
    """What one caller adds to its error, a traceback or a cause, is none of another's."""
    core = await opened()
    await core.publish("t", b"")
    batch = core.backend.publishers["t"].outcome = asyncio.get_running_loop().create_future()
    batch.set_exception(AuthenticationError("no"))
    first, second = await asyncio.gather(core.publish("t", b"1"), core.publish("t", b"2"), return_exceptions=True)
    assert (type(first), str(first)) == (type(second), str(second)) == (AuthenticationError, "no")
    assert first is not second
    await core.close()


async def test_a_dead_letter_goes_bare_where_neither_key_nor_headers_travel():
    core = await opened()
    await core.publish("dead", b"first")
    publisher = core.backend.publishers["dead"]
    take, tries = publisher.try_send, []

    def try_send(payload, key, headers):
        tries.append((key, headers))
        if headers or key is not None:
            raise HeaderError("nothing but the payload travels")
        return take(payload, key, headers)

    publisher.try_send = try_send
    message = Message("t", b"poison", {"a": "1"}, "k")
    assert await core.dead_letter(message, "dead", {"msight-dead-error": "ValueError"})
    assert publisher.sent == [b"first", b"poison"]
    assert [key for key, _ in tries] == ["k", "k", None]
    await core.close()


# -- subscribing


async def test_what_a_backend_cannot_do_is_said():
    core = await opened()
    with pytest.raises(UnsupportedError, match="MSIGHT_PUBSUB_BACKEND=kafka"):
        core.subscribe(("t",), start="earliest")
    with pytest.warns(CapabilityWarning, match="'g'") as warned:
        core.subscribe(("t",), group_id="g")
        core.subscribe(("t",), group_id="g")
    assert len(warned) == 1
    await core.close()
    strict = await opened(MSIGHT_STRICT="true")
    with pytest.raises(UnsupportedError, match="'g'"):
        strict.subscribe(("t",), group_id="g")
    await strict.close()


@pytest.mark.parametrize(("keeps", "policy"), [(True, "block"), (False, "drop_oldest")])
async def test_a_log_waits_and_a_live_stream_drops(keeps, policy):
    core = core_of(MSIGHT_QUEUE_MESSAGES="7", MSIGHT_QUEUE_BYTES="5000")
    core.backend.capabilities.persistence = keeps
    await core.open()
    asked: list = []

    async def subscribe(selection, inbox):
        asked.append(selection.queue)
        return Consumer(fails=False)

    core.backend.subscribe = subscribe
    async with core.subscribe(("t",)):
        pass
    (queue,) = asked
    assert (queue.when_full, queue.max_messages, queue.max_bytes) == (policy, 7, 5000)
    await core.close()


# -- the end


async def test_closing_closes_everything_in_order_although_a_part_fails(caplog):
    events: list = []
    core = await opened(events.append)
    order: list[str] = []

    async def hook():
        order.append(f"hook, {core.backend.closed} closed")

    core.before_closing.append(hook)
    core.backend.fails = True
    await core.subscribe(("a",)).__aenter__()
    core.backend.fails = False
    await core.subscribe(("b",)).__aenter__()
    core.reporter.report(Disconnected("last words"))
    await core.close()
    assert order == ["hook, 0 closed"]
    assert [consumer.closed for consumer in core.backend.consumers] == [True, True]
    assert core.backend.closed == 1
    assert events == [Disconnected("last words")]
    assert "Closing the subscription to" in caplog.text
    await core.close()
    assert core.backend.closed == 1


@pytest.mark.parametrize("wrong", ["redis", {"backend": "redis"}])
def test_other_settings_than_bus_settings_are_refused_with_what_chooses_the_backend(wrong):
    with pytest.raises(TypeError, match=rf"not {type(wrong).__name__}\. Select the backend with connect\(backend="):
        connect(wrong)


async def test_what_closes_the_bus_while_it_closes_does_not_wait_for_itself():
    core = await opened()
    ended = []

    async def hook():
        async with asyncio.timeout(0.5):
            await core.close()
        ended.append(True)

    core.before_closing.append(hook)
    await core.close()
    assert ended == [True]
    assert core.backend.closed == 1
