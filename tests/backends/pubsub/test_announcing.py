"""Announcing the last sequences of very many quiet topics: little in a turn of the loop, all of them at the end."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager

import msgspec
import pytest

import msight_bus
from msight_bus.events import Disconnected
from msight_bus.settings import BusSettings
from tests.support.listeners import fake
from tests.support.rig import LIVE, seen, until
from tests.support.scripted_peers import PUBLISH, ScriptedPeer
from tests.support.servers import variables

TOPICS = 10_000
TOPICS_A_TURN = 2_000
SEEN_AT_ONCE = 2 * TOPICS_A_TURN
"""What two turns of the bus have written may be read in one turn of the peer."""
LATER = {"MSIGHT_ANNOUNCE_INTERVAL": "600", "MSIGHT_ANNOUNCE": "false"}

live = pytest.mark.parametrize("kind", LIVE)


def name(i):
    """A topic of the usual length."""
    return f"site.cam{i:05}.frames"


class Listening(ScriptedPeer):
    """Keeps what is announced.

    Attributes:
        announced: the highest announced sequence of each topic.
        turns: topics that were announced in each turn of the loop.
        away: hangs up on each new connection.
    """

    def __init__(self, kind):
        super().__init__(kind, self._listen)
        self.announced: dict[str, int] = {}
        self.turns: list[int] = []
        self.away = False
        self._counting = False

    async def __call__(self, reader, writer):
        if not self.away:
            await super().__call__(reader, writer)

    def _listen(self, command):
        if command.verb != PUBLISH[self.kind] or command.words[0] != b"_msight.seq":
            return
        sequences = topics(msgspec.msgpack.decode(self.published(command)[1]))
        self.announced |= sequences
        if not self._counting:  # the first in this turn
            self._counting = True
            self.turns.append(0)
            asyncio.get_running_loop().call_soon(self._turn_ends)
        self.turns[-1] += len(sequences)

    def _turn_ends(self):
        self._counting = False


def topics(announcement):
    """Topics and sequences of an announcement, however it is nested."""
    if isinstance(announcement, dict):
        own = {key: value for key, value in announcement.items() if isinstance(key, str) and isinstance(value, int)}
        return own | topics(list(announcement.values()))
    if isinstance(announcement, list):
        return {key: value for each in announcement for key, value in topics(each).items()}
    return {}


@asynccontextmanager
async def quiet_topics(peer, count=TOPICS, **variables_of_it):
    """A bus that has published once on each of very many topics; its events, and what listens."""
    events: list = []
    async with fake(peer) as way:
        environ = {"MSIGHT_PUBSUB_BACKEND": peer.kind, **variables(peer.kind, way.port), **variables_of_it}
        async with msight_bus.connect(BusSettings(environ=environ), on_event=events.append) as bus:
            for i in range(count):
                await bus.publish(name(i), b"x")
            async with bus.publisher(name(0)) as publisher:  # its round trip: the peer has read all
                await publisher.send(b"x")
            yield bus, events, way


def sequences(count=TOPICS):
    return {name(i): 2 if i == 0 else 1 for i in range(count)}


@live
async def test_a_turn_of_the_loop_announces_a_bounded_number_of_topics(kind):
    peer = Listening(kind)
    async with quiet_topics(peer, MSIGHT_ANNOUNCE_INTERVAL="0.3", MSIGHT_ANNOUNCE="false"):
        await until(lambda: sum(peer.turns) >= TOPICS // 2, within=4)
        assert max(peer.turns) <= SEEN_AT_ONCE


@live
async def test_all_quiet_topics_are_announced(kind):
    peer = Listening(kind)
    async with quiet_topics(peer, MSIGHT_ANNOUNCE_INTERVAL="0.1", MSIGHT_ANNOUNCE="false"):
        await until(lambda: peer.announced == sequences(), within=4)


@live
@pytest.mark.parametrize("how", ["leaving", "draining"])
async def test_at_the_end_all_are_announced(kind, how):
    peer = Listening(kind)
    async with quiet_topics(peer, **LATER) as (bus, _, _):
        assert not peer.announced
        if how == "draining":
            await bus.drain(4)
    assert peer.announced == sequences()
    assert max(peer.turns) <= SEEN_AT_ONCE


def lines(caplog):
    """Log lines that tell of announcements, and their numbers."""
    told = [record.getMessage() for record in caplog.records if record.name.startswith("msight_bus")]
    return [re.findall(r"\d+", line.replace(",", "")) for line in told if re.search("announce|last sequence", line)]


@live
async def test_what_could_not_be_announced_at_the_end_is_a_log_line(kind, caplog):
    """The broker is away."""
    peer = Listening(kind)
    async with quiet_topics(peer, 1000, MSIGHT_DRAIN_TIMEOUT="0.3", MSIGHT_PONG_TIMEOUT="0.3", **LATER) as (
        _,
        events,
        way,
    ):
        peer.away = True
        way.cut()
        await until(lambda: seen(events, Disconnected), within=4)
    (numbers,) = lines(caplog)
    assert str(1000 - len(peer.announced)) in numbers


@live
async def test_what_a_peer_does_not_take_at_the_end_is_a_log_line(kind, caplog):
    """It does not read: what is more than fits into the sockets is not announced within the deadline."""
    peer = Listening(kind)
    limits = {"MSIGHT_DRAIN_TIMEOUT": "0.3", "MSIGHT_PONG_TIMEOUT": "0.3"}
    async with quiet_topics(peer, 1000, **limits, **LATER) as (bus, _, _):
        peer.stop_reading()
        filling = asyncio.create_task(fill(bus))
        await asyncio.sleep(0.3)
        filling.cancel()
        await asyncio.wait((filling,))
    (numbers,) = lines(caplog)
    assert any(0 < int(number) <= 1001 for number in numbers)


async def fill(bus):
    """Publish until the connection takes no more."""
    while True:
        await bus.publish("full", bytes(500_000))
