"""Small nodes for tests, and functions that run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from msight_bus import Bus
from msight_bus.nodes import Node, NodeConfig, ProcessingNode, SinkNode, SourceNode

DEADLINE = 20.0


class Numbers(SourceNode):
    """Publishes 0, 1, 2, ... as text: ``count`` items, or without end."""

    def __init__(self, config: NodeConfig, count: int | None = None) -> None:
        super().__init__(config)
        self.count = count
        self.given = 0

    async def get_data(self):
        if self.given == self.count:
            raise StopAsyncIteration
        self.given += 1
        return b"%d" % (self.given - 1)


class Apply(ProcessingNode):
    """Publishes the result of a coroutine function for each input."""

    def __init__(self, config: NodeConfig, function: Callable[[Any], Awaitable[Any]]) -> None:
        super().__init__(config)
        self.function = function

    async def process(self, data):
        return await self.function(data)


class Collect(SinkNode):
    """Collects inputs; `until` waits for them."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.items: list[Any] = []
        self.came = asyncio.Event()

    async def on_message(self, data):
        self.items.append(data)
        self.came.set()

    async def until(self, count: int) -> list[Any]:
        """Wait for ``count`` items and return them."""
        await eventually(self.came, lambda: len(self.items) >= count)
        return self.items


async def eventually(news: asyncio.Event, condition: Callable[[], bool]) -> None:
    """Wait for ``condition``, checked at each ``news``."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            news.clear()
            await news.wait()


async def start(bus: Bus, node: Node) -> asyncio.Task[None]:
    """Run the node in a task; return when the node is ready or has ended."""
    task = asyncio.create_task(node.run(bus))
    async with asyncio.timeout(DEADLINE):
        await asyncio.sleep(0)
        await node._node_run.ready.wait()
    return task


@asynccontextmanager
async def running(bus: Bus, *nodes: Node) -> AsyncIterator[None]:
    """Start the nodes in order, each after the previous is ready; at the end stop them and raise their errors."""
    tasks = []
    try:
        for node in nodes:
            tasks.append(await start(bus, node))
        yield
        for node in nodes:
            node.stop()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
