"""Work beside the loop takes real time: while it is out the virtual clock stands, so that no deadline passes meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from msight_bus.nodes import off_loop
from msight_bus.testing import Simulation

SECONDS = 0.02
"""Real seconds that the work takes: longer than any of it needs to begin, and far below the deadlines in virtual time."""

jumps = pytest.mark.xfail(strict=True, reason="G3: the virtual clock jumps while work is out")


def work():
    time.sleep(SECONDS)
    return "done"


async def in_a_process():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print('done')", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        out, _ = await process.communicate()
    finally:  # a deadline that passes too early must not leave it behind
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return out.decode().strip()


WORK = {
    "off_loop": lambda: off_loop(work),
    "to_thread": lambda: asyncio.to_thread(work),
    "executor": lambda: asyncio.get_running_loop().run_in_executor(None, work),
    "subprocess": in_a_process,
}
ways = pytest.mark.parametrize("way", WORK.values(), ids=WORK)


@jumps
@ways
async def test_a_deadline_does_not_pass_while_work_is_out(msight_simulation, way):
    async with asyncio.timeout(0.5):
        assert await way() == "done"


@jumps
@ways
async def test_a_timer_fires_only_when_the_work_is_done(msight_simulation, way):
    order = []
    timer = asyncio.get_running_loop().call_later(1, order.append, "timer")
    await way()
    order.append("work")
    await asyncio.sleep(2)
    timer.cancel()
    assert order == ["work", "timer"]


@jumps
def test_a_scenario_may_work_off_the_loop():
    async def scenario():
        return await asyncio.gather(*(off_loop(work) for _ in range(3)))

    assert Simulation().run(scenario(), within=3600) == ["done"] * 3


@jumps
async def test_a_handler_off_the_loop_does_not_cost_the_connection(msight_simulation):
    events: list = []
    async with msight_simulation.connect(on_event=events.append) as bus, bus.subscribe("a", deadline=1) as messages:
        await bus.publish("a", b"x")
        await anext(messages)
        before = msight_simulation.now
        await off_loop(work)
        assert msight_simulation.now - before < 0.5
        assert not events


async def test_the_clock_jumps_again_when_the_work_is_done(msight_simulation):
    await asyncio.to_thread(work)
    before = msight_simulation.now
    await asyncio.sleep(86_400)
    assert msight_simulation.now - before >= 86_400
