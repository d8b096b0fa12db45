"""An ``on_event`` that raises is logged and harms nothing: no message, no subscription, no reconnect. On scripted peers."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete

import msight_bus
from msight_bus import AuthenticationError, BusError
from msight_bus.events import DeadlineMissed, Disconnected, Gap, Reconnected, Refused
from msight_bus.settings import BusSettings
from tests.support.brokers import make_backend
from tests.support.kafka_admin import administering
from tests.support.listeners import fake
from tests.support.receiving import take
from tests.support.rig import seen, until
from tests.support.scripted_peers import LIVE, PUBLISH, ScriptedPeer
from tests.support.servers import variables

QUIET = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}
SESSION = 7
WORDS = "raised by the callback of this test"

live = pytest.mark.parametrize("kind", LIVE)
errors = pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])


class Raises:
    """An ``on_event`` that raises at each event of one kind.

    Attributes:
        events: all that it was told.
        stacks: the functions that called it, of each event of that kind.
    """

    def __init__(self, kind, error=ValueError):
        self.events: list = []
        self.stacks: list[list[str]] = []
        self._kind = kind
        self._error = error

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, self._kind):
            self.stacks.append([frame.name for frame in traceback.extract_stack()])
            raise self._error(WORDS)

    async def until(self, kind, count=1):
        """Wait for so many events of one kind."""
        await until(lambda: len(seen(self.events, kind)) >= count, within=3)


@asynccontextmanager
async def bus_with(peer, callback):
    """A bus at a scripted peer; what listens. An exception that reaches the loop's handler fails the test."""
    unhandled: list = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    try:
        async with fake(peer) as way:
            environ = {"MSIGHT_PUBSUB_BACKEND": peer.kind, **variables(peer.kind, way.port), **QUIET}
            async with msight_bus.connect(BusSettings(environ=environ), on_event=callback) as bus:
                yield bus, way
    finally:
        loop.set_exception_handler(None)
    assert unhandled == []


def logged(caplog):
    """Log lines of the bus that tell of the callback's exception."""
    return [
        record
        for record in caplog.records
        if record.name.startswith("msight_bus")
        and (WORDS in record.getMessage() or (record.exc_info and WORDS in str(record.exc_info[1])))
    ]


async def assert_flows(bus, peer, messages):
    """What the peer sends is delivered, what is published arrives, and a subscription can be entered."""
    await peer.until(lambda: peer.subscriptions and not peer.subscriptions[-1].writer.is_closing())
    peer.subscriptions[-1].send(peer.subscriptions[-1].message(SESSION, 1, b"received"))
    assert [message.payload for message in await take(messages, 1, within=3)] == [b"received"]
    async with bus.publisher("b") as publisher:
        await publisher.send(b"published")
    assert ("b", b"published") in [peer.published(command) for command in peer.told(PUBLISH[peer.kind])]
    async with asyncio.timeout(4), bus.subscribe("c"):
        pass


@live
@errors
@pytest.mark.parametrize("raised_at", [Disconnected, Reconnected])
async def test_a_bus_reconnects_though_its_callback_raises(kind, error, raised_at, caplog):
    callback = Raises(raised_at, error)
    peer = ScriptedPeer(kind)
    async with bus_with(peer, callback) as (bus, way), bus.subscribe("a") as messages:
        for count in (1, 2):
            way.cut()
            await callback.until(Reconnected, count)
        await assert_flows(bus, peer, messages)
    assert 1 <= len(logged(caplog)) <= len(seen(callback.events, raised_at))


@live
async def test_one_exception_is_one_log_line(kind, caplog):
    callback = Raises(Disconnected)
    async with bus_with(ScriptedPeer(kind), callback) as (bus, way), bus.subscribe("a"):
        way.cut()
        await callback.until(Reconnected)
    (record,) = logged(caplog)
    assert record.levelno >= logging.WARNING


@live
@pytest.mark.parametrize("error", [pytest.param(ValueError), pytest.param(asyncio.CancelledError)])
async def test_the_messages_that_reveal_a_gap_are_delivered_though_the_callback_raises(kind, error, caplog):
    callback = Raises(Gap, error)
    peer = ScriptedPeer(kind)
    async with bus_with(peer, callback) as (bus, _), bus.subscribe("a") as messages:
        (at,) = peer.subscriptions
        at.send(*[at.message(SESSION, sequence, b"%d" % sequence) for sequence in (1, 3, 4, 7, 8)])
        received = await take(messages, 5, within=2)
        at.send(at.message(SESSION, 9, b"9"))
        received += await take(messages, 1, within=2)
        await callback.until(Gap, 2)
        assert [message.sequence for message in received] == [1, 3, 4, 7, 8, 9]
        assert (messages.stats.gaps, messages.stats.missing) == (2, 3)
    assert [(gap.topic, gap.missing) for gap in seen(callback.events, Gap)] == [("a", 1), ("a", 2)]
    assert not seen(callback.events, Disconnected)
    assert 1 <= len(logged(caplog)) <= 2


@live
async def test_a_callback_runs_outside_the_read_path(kind):
    """It may look at the subscription: what revealed the gap is queued by then."""
    peer = ScriptedPeer(kind)
    queued: list = []

    def callback(event):
        if isinstance(event, Gap):
            queued.append(messages.stats.queued)
            inside.extend(frame.name for frame in traceback.extract_stack())

    inside: list[str] = []
    async with bus_with(peer, callback) as (bus, _), bus.subscribe("a") as messages:
        (at,) = peer.subscriptions
        at.send(*[at.message(SESSION, sequence, b"x") for sequence in (1, 3)])
        await until(lambda: queued, within=2)
        assert queued == [2]
    assert not {"data_received", "buffer_updated"} & set(inside)


@live
async def test_a_refusal_is_raised_and_the_connection_stays_though_the_callback_raises(kind, caplog):
    def answer(command):
        if command.verb == PUBLISH[kind] and command.words[0] == b"refused":
            if kind == "redis":
                return b"-NOPERM No permissions to access a channel\r\n"
            return b"-ERR 'Permissions Violation for Publish to \"refused\"'\r\n"
        return None

    callback = Raises(Refused)
    peer = ScriptedPeer(kind, answer)
    async with bus_with(peer, callback) as (bus, _), bus.subscribe("a") as messages:
        await bus.publish("refused", b"x")
        await callback.until(Refused)
        with pytest.raises(AuthenticationError):
            await bus.publish("refused", b"x")
        await assert_flows(bus, peer, messages)
    assert not seen(callback.events, Disconnected)
    assert not {"data_received", "buffer_updated"} & {name for stack in callback.stacks for name in stack}
    assert len(logged(caplog)) == 1


class TestDeadlines:
    """On every broker, and on memory."""

    @pytest.mark.parametrize("kind", ["memory", *LIVE, "kafka"])
    async def test_a_missed_deadline_is_told_again_though_the_callback_raises(self, kind, topic, caplog):
        callback = Raises(DeadlineMissed)
        unhandled: list = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        settings = make_backend(kind).settings()
        async with msight_bus.connect(settings, on_event=callback) as bus:
            async with bus.subscribe(topic, deadline=0.05) as messages:
                for count in (1, 2):
                    await callback.until(DeadlineMissed, count)
                    await bus.publish(topic, b"x")
                    await take(messages, 1, within=3)
        assert unhandled == []
        assert 1 <= len(logged(caplog)) <= len(callback.stacks)


@live
async def test_leaving_is_in_order_though_the_callback_raises_at_everything(kind):
    callback = Raises(object)
    peer = ScriptedPeer(kind)
    async with bus_with(peer, callback) as (bus, way):
        async with bus.subscribe("a", deadline=0.05) as messages:
            await callback.until(DeadlineMissed)
            way.cut()
            await callback.until(Reconnected)
            await assert_flows(bus, peer, messages)
        await bus.drain(2)
        with pytest.raises(BusError):
            await bus.publish("a", b"x")


@errors
async def test_what_retention_deleted_is_told_on_kafka_though_the_callback_raises(error, kafka, topic, caplog):
    callback = Raises(Gap, error)
    async with msight_bus.connect(kafka.settings(), on_event=callback) as bus:
        async with bus.publisher(topic) as publisher:
            for i in range(10):
                await publisher.send(b"%d" % i)
        async with bus.subscribe(topic, start="earliest") as messages:
            partition = (await take(messages, 1))[0].position[0]
        async with administering(kafka) as admin:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=6)})
        async with bus.subscribe(topic, start={partition: 1}) as messages:
            received = await take(messages, 4, within=3)
            assert [int(message.payload) for message in received] == [6, 7, 8, 9]
            assert messages.stats.missing == 5
    assert seen(callback.events, Gap) == [Gap(topic, 5, "retention", at_most=True)]
    assert len(logged(caplog)) == 1
