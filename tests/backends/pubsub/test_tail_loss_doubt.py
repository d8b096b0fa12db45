"""Announcements that do not arrive, as over a NATS account import, are one warning, later withdrawn. On scripted peers."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from tests.support.receiving import take
from tests.support.rig import LIVE
from tests.support.scripted_peers import ScriptedPeer, bus_at

QUICK = {"MSIGHT_ANNOUNCE_INTERVAL": "0.02", "MSIGHT_PING_INTERVAL": "3600"}
live = pytest.mark.parametrize("kind", LIVE)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Silence is suspicious after a moment."""
    monkeypatch.setattr("msight_bus.backends.pubsub.tail_loss._SILENT_FOR", 0.05)


def subscriptions(peer):
    """The subscription to announcements, and the other one."""
    (followed,) = peer.subscriptions
    commands = [command for verb in ("SUB", "SUBSCRIBE") for command in peer.told(verb)]
    (address,) = {command.words[-1] for command in commands if command.words[0] == b"_msight.seq"}
    return followed._replace(topic="_msight.seq", address=address), followed


def doubts(caplog):
    return [record.getMessage() for record in caplog.records if "no announcement" in record.getMessage()]


@live
async def test_a_followed_publisher_that_falls_silent_without_an_announcement_makes_tail_loss_doubtful(kind, caplog):
    peer = ScriptedPeer(kind)
    with caplog.at_level(logging.INFO, logger="msight_bus"):
        async with bus_at(peer, **QUICK) as at, at.bus.subscribe("a") as messages:
            assert at.bus.capabilities.tail_loss
            announced, followed = subscriptions(peer)
            followed.send(followed.message(7, 1, b"x"))
            await take(messages, 1)
            await at.until(lambda: not at.bus.capabilities.tail_loss)
            (doubt,) = doubts(caplog)
            assert " a " in doubt
            assert "_msight.seq" in doubt
            announced.send(announced.message(8, 1, msgspec.msgpack.encode((9, {"b": 1}))))
            await at.until(lambda: at.bus.capabilities.tail_loss)
            followed.send(followed.message(7, 2, b"x"))
            await take(messages, 1)
            await at.round_trips("b", 20)
            assert at.bus.capabilities.tail_loss
    assert len(doubts(caplog)) == 1


@live
async def test_a_publisher_that_announces_its_last_sequence_is_no_reason_to_doubt(kind, caplog):
    peer = ScriptedPeer(kind)
    async with bus_at(peer, **QUICK) as at, at.bus.subscribe("a") as messages:
        announced, followed = subscriptions(peer)
        followed.send(followed.message(7, 1, b"x"))
        announced.send(announced.message(8, 1, msgspec.msgpack.encode((7, {"a": 2}))))
        await at.until(lambda: messages.stats.missing == 1)
        await at.round_trips("b", 200)
        assert at.bus.capabilities.tail_loss
    assert not doubts(caplog)


@pytest.mark.parametrize("away", [30, 600])
async def test_what_was_silent_while_the_subscriber_was_disconnected_is_no_reason_to_doubt(
    away, msight_simulation, monkeypatch, caplog
):
    monkeypatch.undo()
    simulation = msight_simulation
    async with simulation.connect() as bus, simulation.connect() as camera, bus.subscribe("cam") as frames:
        await camera.publish("cam", b"first")
        await take(frames, 1)
        simulation.disconnect(bus)
        await asyncio.sleep(away)
        simulation.reconnect(bus)
        await asyncio.sleep(20)
        await camera.publish("cam", b"back")
        await take(frames, 1)
        assert bus.capabilities.tail_loss
    assert not doubts(caplog)
