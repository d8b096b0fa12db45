"""What a consumer holds of a log, when it iterates anew and when the bus is drained."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from msight_bus import BusError, QueuePolicy
from msight_bus.backends.base import Selection
from msight_bus.message import Message
from msight_bus.settings import Limits
from msight_bus.subscription import Subscription, SubscriptionOptions


class Ledger:
    """Keeps what was settled (message.Settlement)."""

    partition = 0

    def __init__(self) -> None:
        self.settled: list[bytes] = []

    def settle(self, message: Message) -> None:
        message._settled = True
        self.settled.append(message.payload)


class Log:
    """A backend that keeps messages, and its consumer (backends.base.Backend, Consumer)."""

    lag = 0
    capabilities = SimpleNamespace(persistence=True, load_balancing=True)

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.closed = 0
        self.stopped = False

    async def subscribe(self, selection, inbox):
        self.stream = inbox.stream("t")
        return self

    def deliver(self, *payloads: bytes) -> None:
        self.stream.deliver([Message("t", payload, _settlement=self.ledger) for payload in payloads])

    async def stop(self):
        self.stopped = True

    async def commit(self):
        pass

    async def close(self):
        self.closed += 1


async def failing():
    raise BusError("not now")


def subscription_to(log: Log) -> Subscription:
    return Subscription(
        log,
        Selection(("t",), "g", QueuePolicy.block(10), "latest"),
        SubscriptionOptions(),
        limits=Limits(),
        clock=time.time,
        check=lambda: None,
        report=lambda event: None,
        on_entered=lambda subscription: None,
        on_closed=lambda subscription: None,
    )


async def consume(messages: Subscription, n: int) -> list[tuple[bytes, int]]:
    """The next ``n`` messages of a new iteration, and how often each had come before."""
    consumed = []
    async for message in messages:
        consumed.append((message.payload, message.redeliveries))
        if len(consumed) == n:
            break
    return consumed


async def test_what_was_in_hand_comes_again_and_says_so():
    log = Log()
    async with subscription_to(log) as messages:
        log.deliver(b"1", b"2", b"3")
        assert await consume(messages, 2) == [(b"1", 0), (b"2", 0)]
        assert await consume(messages, 1) == [(b"2", 1)]
        assert await consume(messages, 2) == [(b"2", 2), (b"3", 0)]
        assert log.ledger.settled == [b"1", b"2"]


@pytest.mark.parametrize("consumer", ["none", "ended", "waits"])
@pytest.mark.parametrize("unacknowledged", [False, True])
@pytest.mark.parametrize("queued", [False, True])
async def test_intake_has_ended_all_when_nothing_is_queued_or_in_hand(queued, unacknowledged, consumer):
    log = Log()
    async with subscription_to(log) as messages:
        if unacknowledged or consumer == "ended":
            log.deliver(b"1")
            await asyncio.create_task(consume(messages, 1))
        if not unacknowledged:
            for message in list(messages._inbox.unacknowledged):
                messages._inbox.drop(message, "by the test")
        iterating = asyncio.create_task(asyncio.Event().wait() if consumer == "waits" else asyncio.sleep(0))
        if consumer == "waits":
            messages.consumer = iterating
        await asyncio.sleep(0)
        if queued:
            log.deliver(b"2")
        await messages.stop_receiving()
        assert log.stopped
        assert messages._queue.ended
        finished = asyncio.create_task(messages.finished())
        await asyncio.sleep(0)
        assert finished.done() is (not queued and not unacknowledged and consumer != "waits")
        assert messages.left == int(unacknowledged) + int(queued)
        finished.cancel()
        iterating.cancel()


async def test_the_queue_ends_even_if_the_intake_cannot_be_stopped():
    log = Log()
    async with subscription_to(log) as messages:
        log.stop = failing
        with pytest.raises(BusError, match="not now"):
            await messages.stop_receiving()
        assert [message async for message in messages] == []


async def test_what_is_delivered_again_or_elsewhere_is_in_hand_no_more():
    log = Log()
    async with subscription_to(log) as messages:
        log.deliver(b"1", b"2", b"3")
        await consume(messages, 1)
        (message,) = messages._inbox.unacknowledged
        messages._inbox.requeue(message)
        assert messages.left == 3
        assert await anext(messages) is message
        assert log.ledger.settled == []
        messages._inbox.discard(lambda message: message.payload != b"2", "moved")
        assert messages.left == 1
        assert await consume(messages, 1) == [(b"2", 0)]
        assert log.ledger.settled == []
        assert messages.stats.dropped == {"moved": 1}


async def test_closing_ends_the_consumer_at_the_broker_once_and_whoever_waits_for_the_end():
    log = Log()
    async with subscription_to(log) as messages:
        log.deliver(b"1")
        finished = asyncio.create_task(messages.finished())
        await asyncio.sleep(0)
        assert not finished.done()
        await messages.close()
        await asyncio.sleep(0)
        assert finished.done()
    assert log.closed == 1


async def test_a_pattern_is_measured_without_the_messages_of_the_topics_beside_it(memory):
    async with (
        memory.connect(MSIGHT_ANNOUNCE="false") as bus,
        bus.subscribe(["site.cam", "other", "site.*"]) as messages,
    ):
        for topic in ("site.cam", "site.cam", "site.x", "other", "site.cam", "site.x"):
            await bus.publish(topic, b"x")
            await anext(messages)
        assert list(messages.measure()) == [("site.cam", 3, True), ("other", 1, True), ("site.*", 2, True)]
        await bus.publish("site.cam", b"x")
        await anext(messages)
        assert list(messages.measure()) == [("site.cam", 1, True), ("other", 0, True), ("site.*", 0, True)]
