"""The exchange of the memory backend: who gets what, in which lists, and what becomes of a connection that does not read."""

from __future__ import annotations

import asyncio
import time

import pytest

from msight_bus.backends import memory
from msight_bus.backends.memory import Exchange, MemoryConnection
from msight_bus.backends.pubsub.routes import Route
from msight_bus.errors import BusError, ConnectionLostError, MessageTooLargeError
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.settings import Limits


class Stream:
    """Keeps each list that comes (backends.base.TopicStream)."""

    def __init__(self) -> None:
        self.lists: list[list[bytes]] = []
        self.sequences: list[int] = []

    def deliver(self, batch) -> None:
        self.lists.append([message.payload for message in batch])
        self.sequences += [message.sequence for message in batch]

    @property
    def payloads(self) -> list[bytes]:
        return [payload for payloads in self.lists for payload in payloads]


class Sender:
    """Publishes, and keeps what it is told (in_flight.Sender)."""

    def __init__(self) -> None:
        self.unconfirmed = None
        self.lost = 0

    def refused(self, error) -> None:
        raise AssertionError("memory refuses nothing")

    def connection_lost(self, count, reason) -> None:
        self.lost += count


class Broker:
    """An exchange, and connections to it."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.lost: list[BusError] = []
        self.sender = Sender()
        self.counters: dict[str, TopicCounter] = {}

    def connect(self, **limits: int) -> MemoryConnection:
        lost = self.lost
        return MemoryConnection(self.exchange, lambda _, error: lost.append(error), Limits(**limits), time.time)

    def publish(self, connection: MemoryConnection, topic: str, *payloads: bytes, **more) -> None:
        counter = self.counters.setdefault(topic, TopicCounter(topic, 7))
        for payload in payloads:
            connection.publish(self.sender, counter, payload, more.get("key"), more.get("headers"))


async def subscribe(connection: MemoryConnection, topic: str, group_id: str | None = None) -> Stream:
    stream = Stream()
    route = Route(topic, group_id, stream, lambda error: None)
    await connection.subscribe(route).answer
    stream.route = route
    return stream


def numbers(n: int, start: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(start, start + n)]


async def turn() -> None:
    await asyncio.sleep(0)


async def test_what_a_bus_writes_in_one_tick_arrives_as_one_list_a_topic():
    broker = Broker()
    near, far = broker.connect(), broker.connect()
    a, b = await subscribe(far, "a"), await subscribe(far, "b")
    for i in range(3):
        broker.publish(near, "a", b"a%d" % i)
        broker.publish(near, "b", b"b%d" % i)
        broker.publish(near, "nobody", b"")
    assert a.lists == []
    await turn()
    broker.publish(near, "a", b"a3")
    await turn()
    assert (a.lists, b.lists) == ([[b"a0", b"a1", b"a2"], [b"a3"]], [[b"b0", b"b1", b"b2"]])
    assert a.sequences == [1, 2, 3, 4]


async def test_everyone_without_a_group_gets_everything_and_a_group_shares_in_turn():
    broker = Broker()
    near = broker.connect()
    alone = [await subscribe(broker.connect(), "t") for _ in range(2)]
    workers = [await subscribe(broker.connect(), "t", "workers") for _ in range(3)]
    other = await subscribe(broker.connect(), "t", "other")
    broker.publish(near, "t", *numbers(4))
    await turn()
    broker.publish(near, "t", *numbers(4, 4))
    await turn()
    for stream in (*alone, other):
        assert stream.payloads == numbers(8)
    assert [stream.payloads for stream in workers] == [numbers(8)[i::3] for i in range(3)]


async def test_single_messages_are_shared_in_turn_too():
    broker = Broker()
    near = broker.connect()
    workers = [await subscribe(near, "t", "workers") for _ in range(3)]
    for i in range(6):
        broker.publish(near, "t", b"%d" % i)
        await turn()
    assert [stream.payloads for stream in workers] == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]


async def test_subscribing_and_leaving_keep_their_place_among_the_messages():
    broker = Broker()
    near = broker.connect()
    broker.publish(near, "t", b"before")
    stream = Stream()
    joined = near.subscribe(route := Route("t", None, stream, lambda error: None))
    broker.publish(near, "t", b"1", b"2")
    left = near.unsubscribe(route)
    broker.publish(near, "t", b"after")
    await left.answer
    assert joined.answer.done()
    await turn()
    assert stream.payloads == [b"1", b"2"]
    assert not near.carries(route)
    assert broker.exchange._topics == {}


async def test_a_round_trip_confirms_what_was_written_before():
    broker = Broker()
    near = broker.connect()
    broker.publish(near, "t", b"1", b"2")
    assert near.in_flight
    await near.ping().answer
    assert not near.in_flight
    assert broker.sender.unconfirmed.count == 0


async def test_a_publisher_that_never_waits_gives_the_loop_a_turn():
    broker = Broker()
    near = broker.connect()
    broker.publish(near, "t", *numbers(999))
    assert not near.congested
    broker.publish(near, "t", b"")
    assert near.congested
    await near.drained()
    assert not near.congested


async def test_what_a_paused_connection_does_not_read_waits_in_order():
    broker = Broker()
    near, far = broker.connect(), broker.connect()
    stream = await subscribe(far, "t")
    far.pause_reading()
    for i in range(3):
        broker.publish(near, "t", b"%d" % i)
        await turn()
    assert stream.lists == []
    far.resume_reading()
    broker.publish(near, "t", b"3")
    async with asyncio.timeout(5):
        while len(stream.payloads) < 4:
            await turn()
    assert stream.payloads == numbers(4)


async def test_a_connection_that_reads_again_gets_what_waited_although_nothing_more_comes():
    broker = Broker()
    near, far = broker.connect(), broker.connect()
    stream = await subscribe(far, "t")
    far.pause_reading()
    broker.publish(near, "t", *numbers(3))
    await turn()
    far.resume_reading()
    async with asyncio.timeout(5):
        while len(stream.payloads) < 3:
            await asyncio.sleep(0.01)
    assert stream.payloads == numbers(3)


@pytest.mark.parametrize("how", ["reads again", "leaves", "fails"])
async def test_publishers_have_room_when_the_subscription_that_was_full_reads_again_or_ends(how):
    broker = Broker()
    far = broker.connect()
    stream = await subscribe(far, "t")
    far.pause_reading()
    waiting = [asyncio.create_task(broker.exchange.room("t")) for _ in range(3)]
    await turn()
    waiting[0].cancel()  # which is no concern of the others
    await turn()
    await turn()
    assert [task.done() for task in waiting] == [True, False, False]
    assert broker.exchange.is_full("t")
    if how == "reads again":
        far.resume_reading()
    elif how == "leaves":
        await far.unsubscribe(stream.route).answer
    else:
        far.fail(ConnectionLostError("by the test"))
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting[1:])
    assert not broker.exchange.is_full("t")


@pytest.mark.parametrize(("bound", "enough"), [("_BACKLOG_MESSAGES", 10), ("_BACKLOG_BYTES", 1000)])
async def test_a_connection_that_does_not_read_is_cut_at_its_bound(monkeypatch, bound, enough):
    monkeypatch.setattr(memory, bound, enough)
    broker = Broker()
    near, far = broker.connect(), broker.connect()
    stream = await subscribe(far, "t")
    far.pause_reading()
    for _ in range(10):
        broker.publish(near, "t", bytes(100))
        await turn()
    assert not far.gone.done()
    broker.publish(near, "t", bytes(100))
    await asyncio.wait((far.gone,))
    (error,) = broker.lost
    assert isinstance(error, ConnectionLostError)
    assert "does not read" in str(error)
    assert not near.gone.done()
    broker.publish(near, "t", b"later")
    await turn()
    assert stream.lists == []
    assert broker.exchange._topics == {}


@pytest.mark.parametrize(("bound", "enough"), [("_BACKLOG_MESSAGES", 10), ("_BACKLOG_BYTES", 1000)])
async def test_what_was_read_counts_for_the_bound_no_more(monkeypatch, bound, enough):
    monkeypatch.setattr(memory, bound, enough)
    broker = Broker()
    near, far = broker.connect(), broker.connect()
    stream = await subscribe(far, "t")
    for i in range(15):
        far.pause_reading()
        broker.publish(near, "t", bytes(100))
        await turn()
        far.resume_reading()
        async with asyncio.timeout(5):
            while len(stream.payloads) <= i:
                await asyncio.sleep(0)
    assert not far.gone.done()


async def test_a_connection_that_fails_tells_whoever_waits():
    broker = Broker()
    near = broker.connect()
    request = near.ping()
    broker.publish(near, "t", b"1", b"2")
    near.fail(ConnectionLostError("by the test"))
    near.fail(ConnectionLostError("again"))
    with pytest.raises(ConnectionLostError, match="by the test"):
        await request.answer
    with pytest.raises(ConnectionLostError):
        await near.ping().answer
    assert (broker.sender.lost, len(broker.lost)) == (2, 1)


async def test_closing_sends_what_was_written():
    broker = Broker()
    near, far = broker.connect(), broker.connect()
    stream = await subscribe(far, "t")
    broker.publish(near, "t", b"1")
    await near.close(1.0)
    assert stream.payloads == [b"1"]
    assert near.gone.done()


async def test_what_is_too_large_with_its_headers_is_not_written():
    broker = Broker()
    near = broker.connect(max_message_bytes=1024)
    broker.publish(near, "t", bytes(1024))
    with pytest.raises(MessageTooLargeError) as caught:
        broker.publish(near, "t", bytes(1020), headers={"ab": "cde"})
    assert (caught.value.size, caught.value.limit) == (1025, 1024)
    assert broker.counters["t"].sequence == 1


class Shuffle:
    """Delays each list by one of these seconds in turn (memory.Filter)."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds
        self.passed = 0
        self.forgotten: list[str] = []

    def pass_on(self, delivery, messages) -> None:
        delivery.arrive(messages, self.seconds[self.passed % len(self.seconds)])
        self.passed += 1

    def forget(self, delivery) -> None:
        self.forgotten.append(delivery.route.topic)


async def test_a_filter_delays_messages_and_the_order_of_a_connection_holds(msight_simulation):
    broker = Broker()
    shuffle = broker.exchange.filter = Shuffle(5.0, 0.0)
    near = broker.connect()
    stream, reserved = await subscribe(near, "t"), await subscribe(near, "_msight.nodes")
    start = asyncio.get_running_loop().time()
    for i in range(2):
        broker.publish(near, "t", b"%d" % i)
        await turn()
    while len(stream.payloads) < 2:
        await asyncio.sleep(0.1)
    assert stream.lists == [[b"0"], [b"1"]]
    assert asyncio.get_running_loop().time() - start == pytest.approx(5.0, abs=0.2)
    broker.publish(near, "_msight.nodes", b"")
    await turn()
    assert (reserved.payloads, shuffle.passed) == ([b""], 2)
    await near.unsubscribe(stream.route).answer
    assert shuffle.forgotten == ["t"]


async def test_what_is_delayed_longer_arrives_although_nothing_more_comes(msight_simulation):
    broker = Broker()
    broker.exchange.filter = Shuffle(1.0, 3.0)
    near = broker.connect()
    stream = await subscribe(near, "t")
    start = asyncio.get_running_loop().time()
    for i in range(2):
        broker.publish(near, "t", b"%d" % i)
        await turn()
    async with asyncio.timeout(10):
        while len(stream.payloads) < 2:
            await asyncio.sleep(0.1)
    assert stream.lists == [[b"0"], [b"1"]]
    assert asyncio.get_running_loop().time() - start == pytest.approx(3.0, abs=0.2)
