"""What a side does in a run."""

from __future__ import annotations

import asyncio

from msight_bus.bench.jobs import GO, Plan, publish
from msight_bus.bench.workers import SharedCounters


class CountsTurns:
    """A publisher that never suspends, as one that writes once a turn of the loop."""

    def __init__(self):
        self.sent = self.turns = 0

    async def open(self, target):
        self._turn()

    def _turn(self):
        self.turns += 1
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    async def send(self, payload):
        if not self.sent:
            self.turns = 0  # those until the first message is due
        self.sent += 1

    async def flush(self): ...

    async def close(self):
        self._next.cancel()


async def test_the_loop_runs_while_an_open_loop_sends_as_fast_as_it_can():
    counters = SharedCounters().view
    counters[GO] = 1
    side = CountsTurns()
    plan = Plan("t", 64, 0.001, 0.0, rate=1e6, messages=1000)
    sent = await publish(side, plan, None, counters, lambda _: None)
    assert side.sent == 1000
    assert side.turns > 1000 / 64
    assert len(sent.slips) == 1000
