"""The callback that a bus gives its events to."""

from __future__ import annotations

import functools

import pytest

import msight_bus
from msight_bus import BusError
from msight_bus.settings import BusSettings
from msight_bus.testing import Simulation
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.servers import variables


async def coroutine_function(event):
    raise AssertionError("never called")


class Watcher:
    async def method(self, event):
        raise AssertionError("never called")

    async def __call__(self, event):
        raise AssertionError("never called")


CALLBACKS = {
    "function": coroutine_function,
    "method": Watcher().method,
    "callable object": Watcher(),
    "partial": functools.partial(coroutine_function),
}
each = pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS.keys())


@each
async def test_a_coroutine_function_is_refused_before_anything_is_connected(callback):
    async with fake(Peer("redis")) as way:
        with pytest.raises((TypeError, BusError), match=r"asyncio\.create_task"):
            async with msight_bus.connect(BusSettings(environ=variables("redis", way.port)), on_event=callback):
                pass
        assert not way.connections


@each
async def test_a_simulation_refuses_it_too(callback):
    with pytest.raises((TypeError, BusError), match=r"asyncio\.create_task"):
        async with Simulation().connect(on_event=callback):
            pass
