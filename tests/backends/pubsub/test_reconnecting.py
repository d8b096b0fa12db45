"""The pause between two tries to connect, on peers that hang up."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

import msight_bus
from msight_bus import ConnectionLostError
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.rig import LIVE, until
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
