"""A bus that has given up says so at every call, for as long as the program goes on, and keeps nothing of these calls."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import asynccontextmanager

import pytest

from msight_bus import ConnectionLostError
from tests.support.repeated_errors import assert_does_not_grow
from tests.support.rig import LIVE, own_broker

ONCE = {"MSIGHT_RECONNECT_LIMIT": "1", "MSIGHT_RECONNECT_MAX": "0.05", "MSIGHT_DRAIN_TIMEOUT": "0.5"}


@asynccontextmanager
async def given_up(kind):
    """A bus whose broker is gone for good, a publisher and a subscription of it."""
    with own_broker(kind) as (broker, backend):
        async with backend.connect(**ONCE) as bus:
            publisher = await bus.publisher("a").__aenter__()
            async with bus.subscribe("a") as messages:
                await asyncio.to_thread(broker.kill)
                with pytest.raises(ConnectionLostError, match="MSIGHT_RECONNECT_LIMIT"):
                    async with asyncio.timeout(20):
                        await anext(messages)
                with pytest.raises(ConnectionLostError, match="MSIGHT_RECONNECT_LIMIT"):
                    async with asyncio.timeout(20):
                        while True:
                            await bus.publish("a", b"x")
                            await asyncio.sleep(0)
                yield bus, publisher, messages


@pytest.mark.parametrize("kind", LIVE)
async def test_each_call_raises_an_error_of_its_own(kind):
    async with given_up(kind) as (bus, publisher, messages):
        calls = [
            lambda: bus.publish("a", bytes(10_000)),
            lambda: publisher.send(bytes(10_000)),
            lambda: anext(messages),
            lambda: bus.subscribe("b").__aenter__(),
        ]
        for call in calls:
            await assert_does_not_grow(call, ConnectionLostError)


class Frame(bytearray):
    """A payload whose end can be seen."""


@pytest.mark.parametrize("kind", LIVE)
async def test_no_refused_payload_is_kept(kind):
    async with given_up(kind) as (bus, publisher, _):
        kept = []
        for send in (lambda frame: bus.publish("a", frame), publisher.send):
            for _ in range(50):
                frame = Frame(1000)
                kept.append(weakref.ref(frame))
                with pytest.raises(ConnectionLostError):
                    await send(frame)
                del frame
        gc.collect()
        assert [frame for frame in kept if frame() is not None] == []


@pytest.mark.parametrize("kind", LIVE)
async def test_a_consumer_that_catches_the_error_in_a_loop_lets_others_run(kind):
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with given_up(kind) as (_, _, messages):
        running = asyncio.create_task(other())
        for _ in range(100):
            try:
                await anext(messages)
            except ConnectionLostError:
                continue
        running.cancel()
        await asyncio.wait((running,))
    assert turns > 1
