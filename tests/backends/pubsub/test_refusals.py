"""Whose error a refusal is: the publisher's whose message the broker refused, and nobody else's. On scripted peers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

import msight_bus
from msight_bus import AuthenticationError, ConnectionLostError
from msight_bus.events import Disconnected, Reconnected, Refused
from msight_bus.nodes import NodeConfig
from tests.support.listeners import fake
from tests.support.nodes import Numbers
from tests.support.peers import Peer
from tests.support.rig import LIVE, seen, until
from tests.support.servers import variables
from tests.support.talking import settings_of

live = pytest.mark.parametrize("kind", LIVE)
QUICK = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}


def published(command):
    """Topic and payload of a publish, as far as it is one."""
    if command.verb == "PUBLISH":
        return command.words[0], command.words[1]
    return (command.words[0], command.payload) if command.verb == "HPUB" else (b"", b"")


def published_since_connecting(peer):
    """Whether the newest connection has published."""
    verbs = [command.verb for command in peer.commands if command.verb in ("CONNECT", "HPUB")]
    return verbs[-1:] == ["HPUB"]


@asynccontextmanager
async def refusing(kind, confirms=lambda: True):
    """A bus whose peer refuses each payload that ends with ``refused``; it answers publishes while ``confirms`` says so."""

    def answer(command):
        topic, payload = published(command)
        if payload.endswith(b"refused"):
            if kind == "redis":
                return b"-NOPERM No permissions to access a channel\r\n"
            return b"-ERR 'Permissions Violation for Publish to \"%b\"'\r\n" % topic
        if not confirms() and (topic == b"a" or (command.verb == "PING" and published_since_connecting(peer))):
            return b""
        return None

    events: list = []
    peer = Peer(kind, answer)
    async with fake(peer) as way:
        settings = settings_of(variables(kind, way.port), **QUICK)
        async with msight_bus.connect(settings, on_event=events.append) as bus:
            yield bus, peer, way, events


def payloads(peer):
    return [published(command)[1] for command in peer.commands]


def arrived(peer, payload):
    return any(one.endswith(payload) for one in payloads(peer))


async def leave(publisher):
    await publisher.__aexit__(None, None, None)


@live
async def test_the_publisher_whose_message_was_refused_raises_it_with_its_next_send(kind):
    async with refusing(kind) as (bus, peer, _, events):
        async with bus.publisher("a") as other, bus.publisher("a") as refused:
            await other.send(b"confirmed")
            await other.flush()
            await refused.send(b"refused")
            await until(lambda: seen(events, Refused))
            await other.send(b"fine")
            await bus.publish("a", b"fine too")
            with pytest.raises(AuthenticationError):
                await refused.send(b"not sent")
            await refused.send(b"the one after")
            await refused.flush()
        assert arrived(peer, b"fine")
        assert arrived(peer, b"the one after")
        assert not arrived(peer, b"not sent")


@live
async def test_the_publisher_whose_message_was_refused_raises_it_on_leaving(kind):
    async with refusing(kind) as (bus, _, _, events):
        other = await bus.publisher("a").__aenter__()
        refused = await bus.publisher("a").__aenter__()
        await refused.send(b"refused")
        await until(lambda: seen(events, Refused))
        await other.send(b"fine")
        await leave(other)
        with pytest.raises(AuthenticationError):
            await leave(refused)


@live
async def test_for_publish_the_bus_is_a_publisher_of_its_own(kind):
    async with refusing(kind) as (bus, peer, _, events):
        async with bus.publisher("a") as other:
            await bus.publish("a", b"refused")
            await until(lambda: seen(events, Refused))
            await other.send(b"fine")
        await bus.publish("b", b"fine")
        with pytest.raises(AuthenticationError):
            await bus.publish("a", b"not sent")
        await bus.publish("a", b"the one after")
        await until(lambda: arrived(peer, b"the one after"))
        assert not arrived(peer, b"not sent")


async def test_nats_names_the_topic_only_so_each_publisher_with_unconfirmed_messages_on_it_raises():
    async with refusing("nats") as (bus, _, _, events):
        confirmed = await bus.publisher("a").__aenter__()
        elsewhere = await bus.publisher("b").__aenter__()
        mine, another = [await bus.publisher("a").__aenter__() for _ in range(2)]
        await confirmed.send(b"confirmed")
        await confirmed.flush()
        await asyncio.gather(elsewhere.send(b"x"), mine.send(b"fine"), another.send(b"refused"))
        await until(lambda: seen(events, Refused))
        await confirmed.send(b"fine")
        await leave(confirmed)
        await leave(elsewhere)
        for publisher in (mine, another):
            with pytest.raises(AuthenticationError):
                await leave(publisher)


async def cut(way, peer, events, payload):
    """Cut the connection when the peer has ``payload``, and wait until it is back."""
    await until(lambda: arrived(peer, payload))
    way.cut()
    await until(lambda: seen(events, Disconnected))
    await until(lambda: seen(events, Reconnected))


@live
async def test_what_a_cut_left_unconfirmed_is_told_to_its_publisher_alone(kind):
    confirming = True
    async with refusing(kind, lambda: confirming) as (bus, peer, way, events):
        idle, other, mine = [await bus.publisher("a").__aenter__() for _ in range(3)]
        await other.send(b"confirmed")
        await other.flush()
        confirming = False
        await mine.send(b"1")
        await mine.send(b"last")
        await cut(way, peer, events, b"last")
        confirming = True
        await leave(idle)
        await other.send(b"fine")
        await leave(other)
        with pytest.raises(ConnectionLostError, match="2 messages"):
            await leave(mine)


@live
async def test_what_a_cut_left_unconfirmed_of_publish_is_told_to_no_publisher(kind):
    confirming = False
    async with refusing(kind, lambda: confirming) as (bus, peer, way, events):
        async with bus.publisher("a") as publisher:
            await bus.publish("a", b"last")
            await cut(way, peer, events, b"last")
            confirming = True
            await publisher.send(b"fine")


BUSY = b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n"
ANNOUNCEMENTS = b"_msight.seq"


@pytest.mark.parametrize(
    "error", [BUSY, b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"], ids=["busy", "memory"]
)
async def test_a_passing_error_leaves_the_detection_of_tail_losses_on(error):
    refused = 0

    def announcements():
        return [command for command in peer.told("PUBLISH") if command.words[0] == ANNOUNCEMENTS]

    def answer(command):
        nonlocal refused
        if command.verb == "PUBLISH" and command.words[0] == ANNOUNCEMENTS and not refused:
            refused += 1
            return error
        return None

    peer = Peer("redis", answer)
    async with fake(peer) as way:
        settings = settings_of(variables("redis", way.port), MSIGHT_ANNOUNCE_INTERVAL="0.05")
        async with msight_bus.connect(settings) as bus:
            await bus.publish("a", b"1")
            await until(announcements)
            await bus.publish("a", b"2")
            await until(lambda: len(announcements()) > 1, within=3)
            assert bus.capabilities.tail_loss


@pytest.mark.parametrize("kind", LIVE)
async def test_a_missing_permission_turns_the_detection_of_tail_losses_off(kind):
    def answer(command):
        if published(command)[0] != ANNOUNCEMENTS:
            return None
        if kind == "redis":
            return b"-NOPERM No permissions to access a channel\r\n"
        return b"-ERR 'Permissions Violation for Publish to \"_msight.seq\"'\r\n"

    async with fake(Peer(kind, answer)) as way:
        settings = settings_of(variables(kind, way.port), MSIGHT_ANNOUNCE_INTERVAL="0.05")
        async with msight_bus.connect(settings) as bus:
            assert bus.capabilities.tail_loss
            await bus.publish("a", b"1")
            await until(lambda: not bus.capabilities.tail_loss)


@live
async def test_a_source_counts_each_refused_output_and_publishes_all_others(kind):
    class Mixed(Numbers):
        async def get_data(self):
            payload = await super().get_data()
            if int(payload) % 4:
                return payload
            await asyncio.sleep(0)
            return payload + b" refused"

    node = Mixed(NodeConfig(name="n", publish_topic_name="a", action_on_error="continue"), count=40)
    async with refusing(kind) as (bus, peer, _, events):
        await node.run(bus)
        assert len(seen(events, Refused)) == 10
        assert (node.metrics().messages_out, node.metrics().errors) == (30, 10)
        sent = [payload for topic, payload in map(published, peer.commands) if topic == b"a"]
        assert sum(not payload.endswith(b"refused") for payload in sent) == 30
