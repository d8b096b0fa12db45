"""Nodes are cancelled at each suspension: the bus keeps working, and no task is left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from msight_bus.nodes import NodeConfig, SinkNode, off_loop, run_until
from tests.support.nodes import Collect, Numbers
from tests.support.sweep import CASES, Leftovers, sweep

LIVE = [case for case in CASES if case.values[0] != "kafka"]  # each attempt would wait for a group to be joined


class UntilThree(SinkNode):
    """Stops itself at its third input."""

    taken = 0

    async def on_message(self, data):
        self.taken += 1
        if self.taken == 3:
            self.stop()


async def works(bus, topic):
    """A message still comes through."""
    async with bus.subscribe(topic) as messages:
        await bus.publish(topic, b"after")
        async with asyncio.timeout(20):
            while (await anext(messages)).payload != b"after":
                pass


@pytest.mark.parametrize(("backend", "when"), LIVE, indirect=["backend"])
async def test_run_until(backend, topic, when):
    async with backend.connect() as bus:
        await works(bus, topic)
        for attempt in sweep(when):
            leftovers = Leftovers()
            source = Numbers(NodeConfig(name="source", publish_topic_name=topic), count=3)
            sink = Collect(NodeConfig(name="sink", subscribe_topic_name=topic))
            await attempt.run(run_until(bus, source, sink, stop=asyncio.Event(), end_with_sources=True))
            await leftovers.none()
            await works(bus, topic)
        assert attempt.nth > 1
        assert sink.items == [b"0", b"1", b"2"]


@pytest.mark.parametrize("kind", ["source", "sink"])
@pytest.mark.parametrize(("backend", "when"), LIVE, indirect=["backend"])
async def test_a_node(backend, topic, when, kind):
    async with backend.connect() as bus:
        await works(bus, topic)

        async def feed():
            while True:
                await bus.publish(topic, b"x")
                await asyncio.sleep(0)

        for attempt in sweep(when):
            leftovers = Leftovers()
            if kind == "source":
                await attempt.run(Numbers(NodeConfig(name="n", publish_topic_name=topic), count=3).run(bus))
            else:
                feeding = asyncio.create_task(feed())
                await attempt.run(UntilThree(NodeConfig(name="n", subscribe_topic_name=topic)).run(bus))
                feeding.cancel()
                await asyncio.wait((feeding,))
            await leftovers.none()
            await works(bus, topic)
        assert attempt.nth > 1


async def test_off_loop():
    async def call():
        suspended = threading.Event()
        asyncio.get_running_loop().call_soon(suspended.set)
        assert await off_loop(suspended.wait, 10)

    for attempt in sweep("suspended"):
        await attempt.run(call())
        await call()
    assert attempt.nth > 1
