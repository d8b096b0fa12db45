"""A bus is cancelled at each suspension from connect to close: no task and no connection is left behind."""

from __future__ import annotations

import pytest

from msight_bus import QueuePolicy
from tests.support.sweep import CASES, Leftovers, sweep


@pytest.mark.parametrize(("backend", "when"), CASES, indirect=["backend"])
async def test_a_bus_from_connect_to_close(backend, topic, when):
    async def live():
        async with backend.connect() as bus:
            await bus.nodes()
            async with bus.subscribe(topic) as messages, bus.subscribe(topic, queue=QueuePolicy.block(9)) as others:
                async with bus.publisher(topic) as publisher:
                    await publisher.send(b"x")
                await bus.publish(topic, b"y")
                await anext(messages)
                await anext(others.batches(2))
                await others.close()
            await bus.drain(20)

    for attempt in sweep(when):
        leftovers = Leftovers()
        await attempt.run(live())
        await leftovers.none()
    assert attempt.nth > 1
