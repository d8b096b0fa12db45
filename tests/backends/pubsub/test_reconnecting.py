"""The pause between two tries to connect, on peers that hang up; a bus whose own tasks are cancelled."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

import msight_bus
from msight_bus import ConnectionLostError
from msight_bus.events import Disconnected
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.rig import LIVE, seen, until
from tests.support.scripted_peers import ScriptedPeer
from tests.support.servers import variables
from tests.support.talking import settings_of

live = pytest.mark.parametrize("kind", LIVE)
PAUSE = 0.05
"""The shortest pause, in seconds."""


class HangsUp:
    """Confirms a subscription to ``a``, and hangs up a moment later, when the bus believes to be connected.

    Attributes:
        subscribed: when it confirmed one, by the loop's clock.
    """

    def __init__(self, kind: str) -> None:
        self.subscribed: list[float] = []
        self._kind = kind

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def answer(command):
            if command.verb in ("SUB", "SUBSCRIBE") and b"a" in command.words:
                self.subscribed.append(asyncio.get_running_loop().time())
                asyncio.get_running_loop().call_later(PAUSE / 5, writer.close)

        await Peer(self._kind, answer)(reader, writer)


@asynccontextmanager
async def hung_up_on(kind, **limits):
    """A peer that hangs up on each connection, and what iterates the subscription."""
    peer = HangsUp(kind)
    async with fake(peer) as way:
        settings = settings_of(variables(kind, way.port), MSIGHT_RECONNECT_MIN=f"{PAUSE}", **limits)
        async with msight_bus.connect(settings) as bus:
            async with bus.subscribe("a") as messages:
                waiting = asyncio.create_task(anext(messages))
                try:
                    yield peer, waiting
                finally:
                    waiting.cancel()
                    await asyncio.wait((waiting,))


@live
async def test_short_lived_connections_count_against_the_limit(kind):
    async with hung_up_on(kind, MSIGHT_RECONNECT_LIMIT="5", MSIGHT_RECONNECT_MAX="0.05") as (peer, waiting):
        await until(lambda: waiting.done() or len(peer.subscribed) > 15)
        assert waiting.done()
        with pytest.raises(ConnectionLostError, match="MSIGHT_RECONNECT_LIMIT"):
            await waiting


@live
async def test_the_pause_grows_until_a_connection_has_lasted(kind):
    """A busy machine makes a pause longer, never shorter."""
    async with hung_up_on(kind, MSIGHT_RECONNECT_MAX=f"{PAUSE * 12}") as (peer, _):
        await until(lambda: len(peer.subscribed) > 8)
        last = [later - before for before, later in zip(peer.subscribed[-4:], peer.subscribed[-3:], strict=False)]
        assert min(last) > PAUSE * 5


# -- a program that cancels tasks that are not its own


async def cancel_all_others():
    me = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not me and "msight_bus" in task.get_name()]
    assert others
    for task in others:
        task.cancel()
    await asyncio.wait(others)


@live
@pytest.mark.parametrize("away", [False, True], ids=["connected", "disconnected"])
async def test_a_bus_whose_tasks_the_program_cancels_tells_whoever_uses_it(kind, away):
    """It would neither notice a dead connection nor open another one, and a consumer would wait for ever."""
    peer = ScriptedPeer(kind)
    async with fake(peer) as way:
        settings = settings_of(variables(kind, way.port), MSIGHT_RECONNECT_MIN="0.5", MSIGHT_PUBLISH_TIMEOUT="3")
        events: list = []
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe("a") as messages:
            waiting = asyncio.create_task(anext(messages))
            if away:
                way.cut()
                await until(lambda: events)
            await cancel_all_others()
            await asyncio.wait((waiting,), timeout=2)
            assert waiting.done()
            with pytest.raises(ConnectionLostError, match="all_tasks"):
                await waiting
            await until(lambda: seen(events, Disconnected))
            with pytest.raises(ConnectionLostError, match="all_tasks"):
                await bus.publish("a", b"x")
            with pytest.raises(ConnectionLostError, match="all_tasks"):
                async with bus.subscribe("b"):
                    pass
