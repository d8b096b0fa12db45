"""A connection over a transport of the test's: how it begins and ends, and the order of what it delivers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msight_bus.backends.pubsub.routes import Route
from msight_bus.backends.pubsub.socket_connection import BURST_BYTES, FRAMES_A_TURN
from msight_bus.backends.redis.connection import RedisConnection
from msight_bus.errors import ConnectionLostError
from msight_bus.protocol.envelope import TopicCounter, prefix
from msight_bus.topics import SEQUENCE_TOPIC


class Transport:
    """Keeps what is written while it is open."""

    def __init__(self, *, closing: bool = False) -> None:
        self.written = b""
        self.closing = closing
        self.connection: RedisConnection | None = None

    def get_extra_info(self, name):
        return None

    def set_protocol(self, connection):
        self.connection = connection

    def is_closing(self):
        return self.closing

    def pause_reading(self):
        pass

    resume_reading = pause_reading

    def get_write_buffer_size(self):
        return 0

    def write(self, data):
        assert not self.closing
        self.written += data

    def writelines(self, parts):
        self.write(b"".join(parts))

    def close(self):
        self.closing = True
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close


class Stream:
    """Keeps what is delivered (backends.base.TopicStream)."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.payloads = payloads

    def deliver(self, batch):
        self.payloads += [message.payload for message in batch]


class Subscription:
    """Keeps what is observed and queued, of several topics (backends.base.Inbox and TopicStream)."""

    def __init__(self) -> None:
        self.observed: list[bytes] = []
        self.queued: list[bytes] = []

    def observe(self, batch):
        self.observed += [message.payload for message in batch]

    def follows(self, session, sequence, received_at):
        return False

    def put(self, batch):
        self.queued += [message.payload for message in batch]

    def deliver(self, batch):
        self.observe(batch)
        self.put(batch)


class Interceptor:
    """Keeps what is delivered in place of the streams (connection.Interceptor)."""

    def __init__(self) -> None:
        self.delivered: list[tuple[str, bytes]] = []

    def deliver(self, route, batch):
        self.delivered += [(route.topic, message.payload) for message in batch]


class Sender:
    """Publishes, and keeps what it is told (in_flight.Sender)."""

    run = None
    lost = 0

    def connection_lost(self, count, reason):
        self.lost += count


def connected(transport: Transport) -> RedisConnection:
    connection = RedisConnection(transport, lambda *_: None, raw=True, max_bytes=1 << 20, max_received=1 << 20)
    connection.take_over(b"")
    return connection


def listen(connection: RedisConnection, topic: str, delivered: list[bytes]) -> Route:
    route = Route(topic, None, Stream(delivered), lambda error: None)
    connection.add_route(route, topic.encode())
    return route


def message(topic: str, payload: bytes) -> bytes:
    channel = topic.encode()
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(payload), payload)


def framed(topic: str, number: int) -> bytes:
    """A message of the bus, with its number as payload."""
    return message(topic, prefix(7, number, 0, b"") + b"%d" % number)


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# -- the beginning and the end


async def test_a_transport_that_is_closing_is_not_taken_over():
    """It may have told its protocol already, and then nobody would learn that the connection is gone."""
    with pytest.raises(ConnectionLostError):
        connected(Transport(closing=True))


async def test_closing_writes_what_this_turn_has_left():
    transport, sender = Transport(), Sender()
    connection = connected(transport)
    for payload in (b"first", b"second"):
        connection.publish(sender, TopicCounter("a", 7), payload, None, None)
    assert b"second" not in transport.written  # it leaves with all others of this turn
    await connection.close(1.0)
    assert transport.written.endswith(b"first\r\n*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$6\r\nsecond\r\n")
    assert sender.lost == 2


async def test_what_was_read_before_nonsense_is_delivered():
    transport, delivered = Transport(), []
    connection = connected(transport)
    listen(connection, "a", delivered)
    connection.data_received(message("a", b"1") + message("a", b"2") + b"nonsense\r\n")
    assert transport.closing
    await connection.gone
    assert delivered == [b"1", b"2"]


async def test_a_burst_leaves_at_once_and_gives_the_loop_a_turn():
    transport, counter = Transport(), TopicCounter("a", 7)
    connection = connected(transport)
    half = bytes(BURST_BYTES // 2)
    connection.publish(Sender(), counter, half, None, None)
    assert (connection.congested, connection.unsent_bytes >= len(half)) == (False, True)
    connection.publish(Sender(), counter, half, None, None)
    assert (connection.congested, connection.unsent_bytes) == (True, 0)
    assert transport.written.count(half) == 2
    await connection.drained()
    assert not connection.congested


async def test_whoever_waits_for_room_learns_that_the_connection_is_gone():
    connection = connected(Transport())
    connection.pause_writing()
    waiting = asyncio.create_task(connection.drained())
    await turns(3)
    assert not waiting.done()
    connection.connection_lost(None)
    await turns(3)
    assert waiting.done()


async def test_routes_that_were_forgotten_leave_nothing_behind():
    connection, delivered = connected(Transport()), []
    routes = [listen(connection, "a", delivered) for _ in range(2)]
    connection.forget_route(routes[0])
    connection.forget_route(routes[0])
    connection.data_received(message("a", b"1"))
    assert delivered == [b"1"]
    left = connection.unsubscribe(routes[1])
    connection.data_received(message("a", b"2") + b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n")
    await left.answer
    await turns(1)
    connection.data_received(message("a", b"3"))
    assert delivered == [b"1", b"2"]
    assert (connection._routes, connection._addresses, connection._leaving) == ({}, {}, set())


# -- the order of what is delivered


async def test_what_comes_between_two_turns_does_not_overtake_what_waits_to_be_decoded():
    connection, delivered = connected(Transport()), []
    listen(connection, "a", delivered)
    sent = [b"%d" % i for i in range(FRAMES_A_TURN + 10)]
    connection.data_received(b"".join([message("a", payload) for payload in sent]))
    connection.data_received(message("a", b"second"))
    await turns(1)
    connection.data_received(message("a", b"third"))
    await turns(6)
    assert delivered == [*sent, b"second", b"third"]


async def test_an_announcement_does_not_overtake_the_messages_that_came_before_it():
    """One read brings an earlier announcement too, whose segment of the stream the later one joins."""
    connection, delivered = connected(Transport()), []
    for topic in ("a", SEQUENCE_TOPIC):
        listen(connection, topic, delivered)
    first, last = message(SEQUENCE_TOPIC, b"of 1"), message(SEQUENCE_TOPIC, b"of 2")
    connection.data_received(first + message("a", b"2") + last)
    assert delivered == [b"2", b"of 1", b"of 2"]


SUBSCRIBED = {"a": (0,), "b": (0,), "both": (0, 1), "c": (1,)}
"""Subscriptions by topic."""


def subscribed(connection, *, ordered):
    subscriptions = Subscription(), Subscription()
    for topic, numbers in SUBSCRIBED.items():
        for number in numbers:
            one = subscriptions[number]
            route = Route(topic, None, one, lambda error: None, inbox=one, ordered=ordered)
            connection.add_route(route, topic.encode())
    return subscriptions


@given(
    st.lists(st.lists(st.sampled_from([*SUBSCRIBED, "nobody", "reply"]), min_size=1, max_size=8), max_size=10),
    st.booleans(),
    st.booleans(),
)
@example([["a", "both", "a"]], False, True)
def test_the_messages_of_a_read_are_queued_topic_by_topic_or_in_order_and_before_the_replies_that_follow(
    reads, foreign, ordered
):
    async def receive():
        connection = connected(Transport())
        subscriptions = subscribed(connection, ordered=ordered)
        replies: list = []
        connection.answered = lambda reply: replies.append([list(one.queued) for one in subscriptions])
        expected, expected_at_replies, number = ([], []), [], 0
        for topics in reads:
            data, arrived = b"", {}  # since the last reply
            for topic in [*topics, None]:
                if topic in ("reply", None):
                    for each, payloads in arrived.items():
                        for of in SUBSCRIBED.get(each, ()):
                            expected[of].extend(payloads)
                    arrived = {}
                if topic == "reply":
                    data += b"+PONG\r\n"
                    expected_at_replies.append([list(each) for each in expected])
                elif topic is not None:
                    number += 1
                    data += message(topic, b"%d" % number) if foreign else framed(topic, number)
                    if ordered:
                        for of in SUBSCRIBED.get(topic, ()):
                            expected[of].append(b"%d" % number)
                    else:
                        arrived.setdefault(topic, []).append(b"%d" % number)
            connection.data_received(data)
            await turns(6)
        assert replies == expected_at_replies
        assert [(one.observed, one.queued) for one in subscriptions] == [(each, each) for each in expected]

    asyncio.run(receive())


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("together", [False, True])
async def test_an_interceptor_receives_all_messages_in_place_of_the_streams(together, ordered):
    connection = connected(Transport())
    subscriptions = subscribed(connection, ordered=ordered)
    connection.interceptor = interceptor = Interceptor()
    messages = [framed("ac"[number % 2], number) for number in range(1, 10)] + [
        message("both", b"x"),
        message("a", b"y"),
    ]
    for data in [b"".join(messages)] if together else messages:
        connection.data_received(data)
    await turns(6)
    received = {topic: [payload for of, payload in interceptor.delivered if of == topic] for topic in SUBSCRIBED}
    assert received == {"a": b"2 4 6 8 y".split(), "b": [], "both": [b"x", b"x"], "c": b"1 3 5 7 9".split()}
    assert [one.queued for one in subscriptions] == [[], []]
