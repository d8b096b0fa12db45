"""Waiting takes no time, and happens in order."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from msight_bus.testing import Simulation, VirtualClockLoop
from msight_bus.testing.clock import wall_clock

DAY = 86_400.0


async def test_a_day_passes_at_once_and_exactly(msight_simulation):
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    really, before, wall = time.monotonic(), loop.time(), wall_clock()
    await asyncio.sleep(3 * DAY)
    assert loop.time() - before == pytest.approx(3 * DAY)
    assert wall_clock() - wall == pytest.approx(3 * DAY)
    assert time.monotonic() - really < DAY


async def test_timers_fire_in_the_order_of_their_times(msight_simulation):
    order = []

    async def after(seconds):
        await asyncio.sleep(seconds)
        order.append((seconds, asyncio.get_running_loop().time()))

    start = asyncio.get_running_loop().time()
    await asyncio.gather(*(after(seconds) for seconds in (5, 0.1, 30, 0.2)))
    assert [seconds for seconds, _ in order] == [0.1, 0.2, 5, 30]
    assert [at - start for _, at in order] == pytest.approx([0.1, 0.2, 5, 30], abs=0.001)


async def test_the_clock_all_but_stands_while_something_is_ready(msight_simulation):
    loop = asyncio.get_running_loop()
    timer = loop.call_later(1, lambda: None)
    before = loop.time()
    for _ in range(100):
        await asyncio.sleep(0)
    assert before < loop.time() < before + 0.001
    timer.cancel()


async def test_who_polls_without_waiting_does_not_stop_the_clock(msight_simulation):
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, passed.set)
    while not passed.is_set():
        await asyncio.sleep(0)


async def test_a_remainder_too_small_for_the_clock_passes_all_the_same(msight_simulation):
    loop = asyncio.get_running_loop()
    await asyncio.sleep(1e6)
    before = loop.time()
    await asyncio.sleep(1e-15)
    assert loop.time() > before


async def test_what_the_network_brings_comes_before_a_jump(msight_simulation):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(b"x")
        async with asyncio.timeout(0.001):
            assert await asyncio.get_running_loop().sock_recv(ours, 1) == b"x"


async def test_a_thread_is_waited_for_in_real_time(msight_simulation):
    assert await asyncio.to_thread(lambda: 7) == 7


async def test_another_loop_keeps_the_machines_time():
    assert abs(wall_clock() - time.time()) < DAY


def test_a_scenario_that_cannot_end_is_ended():
    async def scenario():
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match=f"did not end within {DAY:g} virtual seconds.*within="):
        Simulation().run(scenario(), within=DAY)


def test_a_timeout_of_the_scenario_stays_as_it_is():
    async def scenario():
        raise TimeoutError("the scenario's own")

    with pytest.raises(TimeoutError, match="^the scenario's own$"):
        Simulation().run(scenario(), within=DAY)
