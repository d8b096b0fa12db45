"""What peers send, byte by byte: order, counting, flow control, and the bounds of each protocol."""

from __future__ import annotations

import asyncio
import json

import pytest

from msight_bus import BusError, ConnectionLostError, MessageTooLargeError, QueuePolicy
from msight_bus.events import Disconnected, Gap, Reconnected
from tests.support.peers import INFO
from tests.support.receiving import take
from tests.support.scripted_peers import LIVE, ScriptedPeer, bus_at, bus_at_socket

READ = 256_000
"""Bytes that uvloop reads at once."""

QUIET = {"MSIGHT_PING_INTERVAL": "60", "MSIGHT_ANNOUNCE_INTERVAL": "60"}


def messages_of(subscribed, sequences, size):
    """Messages of ``size`` bytes each, everything around the payload included."""
    around = len(subscribed.message(1, 1, b"x" * 100)) - 100
    return [subscribed.message(1, i, (b"%d " % i).ljust(size - around)) for i in sequences]


# -- order and counting


async def test_a_message_that_comes_alone_does_not_overtake_those_of_a_full_read(tmp_path, topic):
    n = READ // 256
    peer = ScriptedPeer("redis")
    async with bus_at_socket(peer, tmp_path / "s", **QUIET) as at, at.bus.subscribe(topic) as messages:
        (subscribed,) = peer.subscriptions
        subscribed.send(*messages_of(subscribed, range(1, n + 2), 256))
        received = await take(messages, n + 1)
    assert [message.sequence for message in received] == list(range(1, n + 2))


@pytest.mark.parametrize("kind", LIVE)
async def test_the_next_number_of_another_publisher_is_not_ones_own(kind, topic):
    peer = ScriptedPeer(kind)
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe(topic) as messages:
        (subscribed,) = peer.subscriptions
        for chunk in ([(1, 1)], [(1, 2), (2, 3)], [(1, 4)], [(2, 4), (2, 5)]):
            subscribed.send(*(subscribed.message(session, number, b"x") for session, number in chunk))
            await take(messages, len(chunk))
        assert at.events == [Gap(topic, 1, "lost")]
        assert (messages.stats.missing, messages.stats.duplicates) == (1, 0)


# -- flow control


@pytest.mark.parametrize("kind", LIVE)
async def test_a_queue_that_fills_while_subscribing_pauses_the_connection(kind, topic):
    """What paused drops after ``block_timeout``; what never paused would hold everything and drop nothing."""
    peer = ScriptedPeer(kind, behind=lambda subscribed: b"".join(messages_of(subscribed, range(1, 21), 256)))
    async with bus_at(peer, MSIGHT_BLOCK_TIMEOUT="0.05", **QUIET) as at:
        async with at.bus.subscribe(topic, queue=QueuePolicy.block(10)) as messages:
            await at.until(lambda: messages.stats.dropped)
            assert messages.stats.dropped == {"block_timeout": 10}
            assert [message.sequence for message in await take(messages, 10)] == list(range(1, 11))


async def test_one_turn_of_the_loop_delivers_a_bounded_amount(tmp_path, topic):
    """As much as the socket holds, a queue is exceeded by what one turn reads."""
    peer = ScriptedPeer("redis")
    async with bus_at_socket(peer, tmp_path / "s", MSIGHT_BLOCK_TIMEOUT="60", **QUIET) as at:
        async with at.bus.subscribe(topic, queue=QueuePolicy.block(10)) as messages:
            (subscribed,) = peer.subscriptions
            subscribed.send(*messages_of(subscribed, range(1, 6001), 1000))
            await at.until(lambda: messages.stats.received)
            assert messages.stats.received * 1000 < 2_500_000
            assert [message.sequence for message in await take(messages, 6000)] == list(range(1, 6001))


# -- RESP

DIGITS = b"9" * 5000
"""More than Python converts to a number."""


@pytest.mark.parametrize(
    "wrong",
    [
        b"*1025\r\n" + b":1\r\n" * 1025,
        b"*" + DIGITS + b"\r\n",
        b"*1\r\n$" + DIGITS + b"\r\n",
        b"*3\r\n$7\r\nmessage\r\n$" + DIGITS + b"\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$" + DIGITS + b"\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$9999999999\r\n",
        b"+" + b"x" * 65536,
        b"*1\r\n" + b":" + b"1" * 65537,
        b"*3\r\n$7\r\nmessage\r\n$" + b"1" * 65537,
    ],
    ids=[
        "1025 elements",
        "elements",
        "element",
        "channel",
        "payload",
        "10 digits",
        "line",
        "element line",
        "length line",
    ],
)
async def test_what_no_redis_sends_ends_the_connection(wrong, topic):
    peer = ScriptedPeer("redis")
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe(topic) as messages:
        peer.subscriptions[-1].send(peer.subscriptions[-1].message(1, 1, b"before"), wrong)
        assert (await take(messages, 1))[0].payload == b"before"
        await at.until(lambda: at.seen(Reconnected))
        assert len(at.seen(Disconnected)) == 1
        peer.subscriptions[-1].send(peer.subscriptions[-1].message(1, 2, b"after"))
        assert (await take(messages, 1))[0].payload == b"after"


async def test_a_line_of_64_kib_is_read(topic):
    """An error's text, that comes in two parts: the first is as long as a line may be without an end."""
    refused, other = f"{topic}.refused", f"{topic}.other"
    line = b"-ERR ".ljust(65536, b"x")

    def asked(command):
        return command.verb == "SUBSCRIBE" and command.words == (refused.encode(),)

    peer = ScriptedPeer("redis", lambda command: line if asked(command) else None)
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe(topic) as messages:
        subscription = at.bus.subscribe(refused)
        entering = asyncio.create_task(subscription.__aenter__())
        await peer.until(lambda: any(map(asked, peer.commands)))
        await at.round_trips(other, 10)
        (first,) = [subscribed for subscribed in peer.subscriptions if subscribed.topic == topic]
        first.send(b"\r\n")
        with pytest.raises(BusError, match="ERR x") as caught:
            await entering
        assert not isinstance(caught.value, ConnectionLostError)
        first.send(first.message(1, 1, b"the stream goes on"))
        assert (await take(messages, 1))[0].payload == b"the stream goes on"
        assert at.events == []


async def test_a_length_of_nine_digits_is_read(topic):
    peer = ScriptedPeer("redis")
    limits = {"MSIGHT_MAX_MESSAGE_BYTES": "200000000", "MSIGHT_QUEUE_BYTES": "200000000"}
    async with bus_at(peer, **limits, **QUIET) as at, at.bus.subscribe(topic) as messages:
        (subscribed,) = peer.subscriptions
        subscribed.send(subscribed.message(1, 1, bytes(100_000_000)))
        assert len((await take(messages, 1))[0].payload) == 100_000_000
        assert at.events == []


# -- NATS


async def test_a_server_cannot_raise_the_limit_that_is_configured(topic):
    info = b"INFO " + json.dumps(INFO | {"max_payload": 8 << 20}).encode() + b"\r\n"
    peer = ScriptedPeer("nats")
    async with bus_at(peer, MSIGHT_MAX_MESSAGE_BYTES="2000", **QUIET) as at:
        peer.writers[-1].write(info)
        await at.round_trips(topic, 2)
        assert at.bus.capabilities.max_message_bytes == 2000
        await at.bus.publish(topic, bytes(1500))
        with pytest.raises(MessageTooLargeError) as caught:
            await at.bus.publish(topic, bytes(2000))
        assert caught.value.limit == 2000


async def test_a_server_that_raises_its_limit_gets_larger_messages(topic):
    peer = ScriptedPeer("nats")
    async with bus_at(peer, **QUIET) as at:
        for limit in (1000, 8 << 20):
            peer.writers[-1].write(b"INFO " + json.dumps(INFO | {"max_payload": limit}).encode() + b"\r\n")
            await at.round_trips(topic, 2)
            assert at.bus.capabilities.max_message_bytes == limit
        await at.bus.publish(topic, bytes(2 << 20))


async def test_a_server_that_lowers_its_limit_is_obeyed(topic):
    info = b"INFO " + json.dumps(INFO | {"max_payload": 1000}).encode() + b"\r\n"
    peer = ScriptedPeer("nats")
    async with bus_at(peer, MSIGHT_MAX_MESSAGE_BYTES="2000", **QUIET) as at:
        peer.writers[-1].write(info)
        await at.round_trips(topic, 2)
        assert at.bus.capabilities.max_message_bytes == 1000
        with pytest.raises(MessageTooLargeError) as caught:
            await at.bus.publish(topic, bytes(1000))
        assert caught.value.limit == 1000
