"""A turn of the event loop takes a bounded part of what a peer sends, and no peer makes a connection buffer without bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from msight_bus import QueuePolicy
from msight_bus.events import Disconnected, Reconnected
from tests.support.receiving import take
from tests.support.scripted_peers import LIVE, ScriptedPeer, bus_at, bus_at_socket

FRAMES = 4096
"""Frames and replies that a turn takes at most."""

READ = 262_144
HELD = 2 * 1024 * 1024
"""Bytes that a turn reads at most."""

QUIET = {"MSIGHT_PING_INTERVAL": "60", "MSIGHT_ANNOUNCE_INTERVAL": "60"}
DEEP = QueuePolicy.drop_oldest(100_000)
PUBLISH = {"redis": "PUBLISH", "nats": "HPUB"}


@contextmanager
def counted_in_each_turn(count) -> Iterator[list[int]]:
    """By how much ``count()`` grows in each turn of the loop."""
    growth: list[int] = []
    loop, last, going = asyncio.get_running_loop(), count(), True

    def turn() -> None:
        nonlocal last
        now = count()
        growth.append(now - last)
        last = now
        if going:
            loop.call_soon(turn)

    loop.call_soon(turn)
    try:
        yield growth
    finally:
        going = False


def foreign(subscribed) -> bytes:
    """The shortest message there is."""
    if subscribed.kind == "redis":
        return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$0\r\n\r\n" % (len(subscribed.address), subscribed.address)
    return b"MSG %b %b 0\r\n\r\n" % (subscribed.topic.encode(), subscribed.address)


# -- frames


@pytest.mark.parametrize("kind", LIVE)
@pytest.mark.parametrize("what", ["foreign", "ours"])
async def test_a_turn_takes_a_bounded_number_of_messages(kind, what, topic):
    """A7."""
    peer, n = ScriptedPeer(kind), 50_000
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe("a", queue=DEEP) as messages:
        (subscribed,) = peer.subscriptions
        with counted_in_each_turn(lambda: messages.stats.received) as growth:
            sent = foreign(subscribed) * n
            if what == "ours":
                sent = b"".join([subscribed.message(1, i, b"") for i in range(1, n + 1)])
            subscribed.send(sent)
            await at.until(lambda: messages.stats.received == n)
    assert sum(growth) == n
    assert max(growth) <= FRAMES


async def test_a_turn_of_one_read_takes_a_bounded_number_of_messages(tmp_path):
    """A7: of 256 KiB that are in the socket at once."""
    peer, n = ScriptedPeer("redis"), 50_000
    async with bus_at_socket(peer, tmp_path / "s", **QUIET) as at, at.bus.subscribe("a", queue=DEEP) as messages:
        (subscribed,) = peer.subscriptions
        with counted_in_each_turn(lambda: messages.stats.received) as growth:
            subscribed.send(foreign(subscribed) * n)
            await at.until(lambda: messages.stats.received == n)
    assert max(growth) == FRAMES


async def test_what_full_reads_bring_is_queued_2_mib_a_turn_at_most(tmp_path):
    """A7: each is read and decoded in a turn of its own."""
    size, n = 1000, 8000
    peer = ScriptedPeer("redis")
    async with bus_at_socket(peer, tmp_path / "s", **QUIET) as at, at.bus.subscribe("a", queue=DEEP) as messages:
        (subscribed,) = peer.subscriptions
        around = len(subscribed.message(1, 1, b"x" * 100)) - 100
        with counted_in_each_turn(lambda: messages.stats.received) as growth:
            subscribed.send(*(subscribed.message(1, i, bytes(size - around)) for i in range(1, n + 1)))
            await at.until(lambda: messages.stats.received == n)
    assert max(growth) * size <= HELD + READ + size


async def test_a_turn_takes_a_bounded_number_of_refusals(tmp_path):
    """A7: each costs as much as a message."""
    n, asked = 20_000, 0

    def answer(command):
        nonlocal asked
        if command.verb != "PUBLISH" or command.words[0] != b"a":
            return None
        asked += 1
        return b"-NOPERM\r\n" * n if asked == n else b""

    refusals = 0

    def refuse(_publisher, error):
        nonlocal refusals
        refusals += 1

    peer = ScriptedPeer("redis", answer)
    async with bus_at_socket(peer, tmp_path / "s", **QUIET) as at:
        with pytest.MonkeyPatch.context() as patch, counted_in_each_turn(lambda: refusals) as growth:
            patch.setattr("msight_bus.backends.pubsub.publishing.PubSubPublisher.refused", refuse)
            async with at.bus.publisher("a", max_in_flight=n) as publisher:
                for _ in range(n):
                    await publisher.send(b"")
                await at.until(lambda: refusals == n)
    assert max(growth) <= FRAMES


# -- between the parts of one read


async def test_a_queue_that_is_full_holds_the_rest_of_a_read_back(tmp_path):
    """A7, and flow control: what no turn has taken is not delivered while the queue is full."""
    peer, n = ScriptedPeer("redis"), 6000
    async with bus_at_socket(peer, tmp_path / "s", MSIGHT_BLOCK_TIMEOUT="60", **QUIET) as at:
        async with at.bus.subscribe("a", queue=QueuePolicy.block(10)) as messages:
            (subscribed,) = peer.subscriptions
            frame = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n%04d\r\n"
            subscribed.send(b"".join([frame % i for i in range(n)]))
            await at.until(lambda: messages.stats.received)
            await at.round_trips("b", 20)
            assert messages.stats.received == FRAMES
            received = await take(messages, n)
    assert [message.payload for message in received] == [b"%04d" % i for i in range(n)]


async def test_what_came_before_the_end_of_the_stream_is_delivered(tmp_path):
    """A7."""
    peer, n = ScriptedPeer("redis"), 6000
    async with bus_at_socket(peer, tmp_path / "s", **QUIET) as at, at.bus.subscribe("a", queue=DEEP) as messages:
        (subscribed,) = peer.subscriptions
        subscribed.send_and_end(foreign(subscribed) * n)
        await at.until(lambda: at.seen(Reconnected))
        assert messages.stats.received == n


async def test_a_subscription_is_left_while_a_flood_arrives(tmp_path):
    """A7: leaving waits for the broker's confirmation only, which follows the flood."""
    peer, n = ScriptedPeer("redis"), 50_000
    async with bus_at_socket(peer, tmp_path / "s", **QUIET) as at:
        async with at.bus.subscribe("a", queue=DEEP) as messages:
            (subscribed,) = peer.subscriptions
            subscribed.send(foreign(subscribed) * n)
            await at.until(lambda: messages.stats.received)
        assert at.events == []


# -- memory


ENDLESS = {
    "array": b"*2000000000\r\n",
    "bulk": b"$500000000\r\n" + bytes(100_000),
    "line": b"+" + b"x" * 100_000,
    "integer": b":" + b"1" * 100_000,
    "nested": b"*1\r\n" * 20,
}


@pytest.mark.parametrize("reply", ENDLESS.values(), ids=ENDLESS.keys())
async def test_a_reply_without_measure_ends_the_publishing_connection(reply, topic):
    """A6."""
    answers = [reply]

    def answer(command):
        if command.verb != "PUBLISH" or command.words[0] != topic.encode() or not answers:
            return None
        return answers.pop()

    peer = ScriptedPeer("redis", answer)
    async with bus_at(peer, **QUIET) as at:
        await at.bus.publish(topic, b"x")
        await at.until(lambda: at.seen(Reconnected))
        assert len(at.seen(Disconnected)) == 1
        await at.bus.publish(topic, b"x")


@pytest.mark.parametrize("kind", LIVE)
async def test_a_message_over_the_limit_ends_the_connection_when_it_is_announced(kind, topic):
    """A6: none of its bytes has to arrive."""
    peer, size = ScriptedPeer(kind), 10_000_000
    async with bus_at(peer, MSIGHT_MAX_MESSAGE_BYTES="1000000", **QUIET) as at:
        async with at.bus.subscribe(topic) as messages:
            (subscribed,) = peer.subscriptions
            start = {
                "redis": b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n" % (len(topic), topic.encode(), size),
                "nats": b"MSG %b %b %d\r\n" % (topic.encode(), subscribed.address, size),
            }
            subscribed.send(subscribed.message(1, 1, b"before"), start[kind])
            assert (await take(messages, 1))[0].payload == b"before"
            await at.until(lambda: at.seen(Reconnected))
            assert len(at.seen(Disconnected)) == 1
