"""What a bus writes to its peer, and how much: round trips, a full connection, attempts, announcements."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from msight_bus import ConnectionLostError, PublishTimeoutError
from tests.support.scripted_peers import LIVE, PUBLISH, ScriptedPeer, bus_at

QUIET = {"MSIGHT_PING_INTERVAL": "60", "MSIGHT_ANNOUNCE_INTERVAL": "60"}


async def test_a_nats_stream_that_nobody_flushes_is_confirmed_all_the_same(topic):
    """What is remembered as unconfirmed is bounded: there is a PING every 10,000 messages at the latest."""
    n = 30_000
    peer = ScriptedPeer("nats")
    async with bus_at(peer, **QUIET) as at:
        for _ in range(n):
            await at.bus.publish(topic, b"x")
        await peer.until(lambda: len(peer.commands) >= n and len(peer.told("HPUB")) == n)
        verbs = "".join("P" if command.verb == "PING" else "m" for command in peer.commands)
    longest = max(len(part) for part in verbs.split("P"))
    assert longest <= 10_000


@pytest.mark.parametrize("kind", LIVE)
async def test_a_peer_that_stops_reading_holds_the_publisher_up(kind, topic):
    """Neither the memory of this process nor the number of messages in it grows with what is published."""
    limits = {"MSIGHT_PUBLISH_TIMEOUT": "0.3", "MSIGHT_PONG_TIMEOUT": "0.2"}
    peer, payload, sent = ScriptedPeer(kind), bytes(65536), 0
    async with bus_at(peer, **limits, **QUIET) as at:
        peer.stop_reading()
        with pytest.raises(PublishTimeoutError):
            while sent < 2000:
                await at.bus.publish(topic, payload)
                sent += 1


@pytest.mark.parametrize("kind", LIVE)
@pytest.mark.parametrize("limit", [1, 3])
async def test_the_limit_is_the_number_of_attempts(kind, limit, topic):
    async def hang_up(reader, writer):
        pass  # this connection ends, and every further one as soon as it is open

    peer = ScriptedPeer(kind, then=(lambda command: command.verb == PUBLISH[kind], hang_up))
    limits = {"MSIGHT_RECONNECT_LIMIT": str(limit), "MSIGHT_RECONNECT_MAX": "0.05"}
    async with bus_at(peer, **limits, **QUIET) as at:
        await at.bus.publish(topic, b"x")
        with pytest.raises(ConnectionLostError):
            async with asyncio.timeout(20):
                while True:
                    await at.bus.publish(topic, b"x")
                    await asyncio.sleep(0)
        assert at.way.connections == 1 + limit


@pytest.mark.parametrize("kind", LIVE)
async def test_a_topic_is_announced_ever_more_rarely_while_it_is_quiet_and_at_once_when_it_was_not(kind, topic):
    """One topic is quiet for ever; the other one is published on again as soon as it has been announced."""
    quiet, busy = f"{topic}.quiet", f"{topic}.busy"
    announced: Counter[str] = Counter()
    between: list[int] = []  # how often the busy topic was announced before each announcement of the quiet one

    def listen(command):
        if command.verb == PUBLISH[kind] and command.words[0] == b"_msight.seq":
            _, payload = peer.published(command)
            topics = list(msgspec.msgpack.decode(payload)[1])
            announced.update(topics)
            if quiet in topics:
                between.append(announced[busy])

    peer = ScriptedPeer(kind, listen)
    async with bus_at(peer, MSIGHT_PING_INTERVAL="60", MSIGHT_ANNOUNCE_INTERVAL="0.005") as at:
        await at.bus.publish(quiet, b"x")
        for n in range(1, 101):
            await at.bus.publish(busy, b"x")
            await peer.until(lambda n=n: announced[busy] >= n)
        assert announced[quiet] <= 25
        assert len(between) >= 7
        assert max(after - before for before, after in pairwise(between)) <= 20
