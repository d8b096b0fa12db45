"""Publish and return the outcomes; publish a stream that must continue while a test changes another topic."""

from __future__ import annotations

import asyncio

from msight_bus import BusError
from tests.support.receiving import take

PAD = bytes(20_000)  # so that a partition has several batches


async def outcomes(*publishes):
    """Return the error of each publish, or ``None``; an error other than a ``BusError`` fails the test."""
    results = await asyncio.gather(*publishes, return_exceptions=True)
    for result in results:
        if result is not None and not isinstance(result, BusError):
            raise result
    return results


def publishing(bus, topic, numbers, pad=PAD, **how):
    return [bus.publish(topic, b"%08d" % i + pad, **how) for i in numbers]


async def received(kafka, topic):
    """The numbers on a topic, in order, up to the one that is published now."""
    async with kafka.connect() as bus, bus.subscribe(topic, start="earliest") as messages:
        await bus.publish(topic, b"end", key="end")
        numbers = []
        while (payload := (await take(messages, 1))[0].payload) != b"end":
            numbers.append(int(payload[:8]))
        return numbers


class Traffic:
    """Publishes messages on one topic, in order."""

    def __init__(self, bus, topic):
        self._bus = bus
        self._topic = topic
        self._moved = asyncio.Event()
        self._stop = asyncio.Event()
        self.count = 0

    async def __aenter__(self):
        self._task = asyncio.create_task(self._publish())
        await self.moves()
        return self

    async def __aexit__(self, *_):
        self._stop.set()
        await self._task

    async def _publish(self):
        while not self._stop.is_set():
            await self._bus.publish(self._topic, b"%08d" % self.count)
            self.count += 1
            self._moved.set()

    async def moves(self):
        """Wait for several further acknowledgements."""
        until = self.count + 5
        while self.count < until and not self._task.done():
            self._moved.clear()
            waiting = asyncio.ensure_future(self._moved.wait())
            await asyncio.wait((waiting, self._task), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        if self._task.done():
            self._task.result()
