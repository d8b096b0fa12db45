"""Leaving a bus costs one round trip and one deadline, however many subscriptions it has."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

import msight_bus
from tests.support.listeners import fake
from tests.support.peers import Peer, Valve
from tests.support.rig import LIVE, until
from tests.support.servers import variables
from tests.support.talking import settings_of

TOPICS = [f"t{i}" for i in range(40)]
live = pytest.mark.parametrize("kind", LIVE)


@asynccontextmanager
async def leaving(kind, *, opens_with_the_last, **limits):
    """A task that leaves a bus with many subscriptions. Its peer answers nothing from the first UNSUB on: none at all, or
    until the last has come."""
    left: list[object] = []

    def answer(command):
        if command.verb.startswith("UNSUB"):
            valve.close()
            left.extend(command.words)
            if opens_with_the_last and len(left) >= len(TOPICS):
                valve.open()

    valve = Valve()
    async with fake(valve.behind(Peer(kind, answer))) as way:
        connection = msight_bus.connect(settings_of(variables(kind, way.port), **limits))
        bus = await connection.__aenter__()
        for topic in TOPICS:
            await bus.subscribe(topic).__aenter__()
        task = asyncio.create_task(connection.__aexit__(None, None, None))
        try:
            yield task
        finally:
            valve.open()
            await task


@live
async def test_it_is_one_round_trip(kind):
    async with leaving(kind, opens_with_the_last=True, MSIGHT_PONG_TIMEOUT="60") as task:
        await until(task.done, within=3)


@live
async def test_it_is_one_deadline_where_nobody_answers(kind):
    async with leaving(kind, opens_with_the_last=False, MSIGHT_PONG_TIMEOUT="0.2") as task:
        await until(task.done, within=4)
