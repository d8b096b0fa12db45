"""Work beside the loop takes real time: while it is out the virtual clock stands, so that no deadline passes meanwhile."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from msight_bus.nodes import off_loop
from msight_bus.testing import Simulation, VirtualClockLoop

DAY = 86_400.0
SECONDS = 0.02
"""Real seconds that the work takes: longer than any of it needs to begin, and far below the deadlines in virtual time."""


def work():
    time.sleep(SECONDS)
    return "done"


async def in_a_process(start=asyncio.create_subprocess_exec, command=(sys.executable, "-c", "print('done')")):
    process = await start(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        out, _ = await process.communicate()
    finally:  # a deadline that passes too early must not leave it behind
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return out.decode().strip()


async def in_an_executor_of_its_own():
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, work)


async def by_a_resolver():
    with mock.patch("socket.getaddrinfo", side_effect=lambda *_: work()):
        return await asyncio.get_running_loop().getaddrinfo("a.test", 1)


async def by_a_thread(kind=threading.Thread):
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    kind(target=lambda: loop.call_soon_threadsafe(answer.set_result, work())).start()
    return await answer


async def by_a_thread_that_says_nothing():
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.01)
    return "done"


class OwnThread(threading.Thread):
    """Has a class of its own, as many libraries' threads have."""


WORK = {
    "off_loop": lambda: off_loop(work),
    "to_thread": lambda: asyncio.to_thread(work),
    "anyio.to_thread": lambda: anyio.to_thread.run_sync(work),
    "anyio.to_thread with a limiter": lambda: anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1)),
    "executor": lambda: asyncio.get_running_loop().run_in_executor(None, work),
    "own executor": in_an_executor_of_its_own,
    "getaddrinfo": by_a_resolver,
    "thread": by_a_thread,
    "own class of thread": lambda: by_a_thread(OwnThread),
    "silent thread": by_a_thread_that_says_nothing,
    "subprocess": in_a_process,
    "shell": lambda: in_a_process(asyncio.create_subprocess_shell, ["sleep 0.02; echo done"]),
}
ways = pytest.mark.parametrize("way", WORK.values(), ids=WORK)


@ways
async def test_a_deadline_does_not_pass_while_work_is_out(msight_simulation, way):
    async with asyncio.timeout(0.5):
        assert await way() == "done"


@ways
async def test_a_timer_fires_only_when_the_work_is_done(msight_simulation, way):
    order = []
    timer = asyncio.get_running_loop().call_later(1, order.append, "timer")
    await way()
    order.append("work")
    await asyncio.sleep(2)
    timer.cancel()
    assert order == ["work", "timer"]


def test_a_scenario_may_work_off_the_loop():
    async def scenario():
        return await asyncio.gather(*(off_loop(work) for _ in range(3)))

    assert Simulation().run(scenario(), within=3600) == ["done"] * 3


async def test_a_handler_off_the_loop_does_not_cost_the_connection(msight_simulation):
    events: list = []
    async with msight_simulation.connect(on_event=events.append) as bus, bus.subscribe("a", deadline=1) as messages:
        await bus.publish("a", b"x")
        await anext(messages)
        before = msight_simulation.now
        await off_loop(work)
        assert msight_simulation.now - before < 0.5
        assert not events


@ways
async def test_the_clock_jumps_again_when_the_work_is_done(msight_simulation, way):
    await way()
    before = msight_simulation.now
    await asyncio.sleep(DAY)
    assert msight_simulation.now - before >= DAY


async def test_a_long_day_takes_no_time_beside_idle_workers(msight_simulation):
    with ThreadPoolExecutor(1) as executor:
        await asyncio.get_running_loop().run_in_executor(executor, work)
        await asyncio.to_thread(work)
        await off_loop(work)
        with mock.patch.object(
            VirtualClockLoop, "advance", autospec=True, side_effect=VirtualClockLoop.advance
        ) as advance:
            await asyncio.sleep(DAY)
    assert max(call.args[1] for call in advance.mock_calls) == pytest.approx(DAY)


# -- worker processes


def test_worker_processes_work():
    async def scenario():
        simulated = asyncio.get_running_loop().time
        async with asyncio.timeout(0.5):
            first = await asyncio.gather(*(off_loop(work, process=True) for _ in range(2)))
            second = await off_loop(os.getpid, process=True)
        before = simulated()
        await asyncio.sleep(DAY)  # beside idle workers
        assert simulated() - before >= DAY
        return first, second

    done, pid = Simulation().run(scenario(), within=2 * DAY)
    assert done == ["done", "done"]
    assert pid != os.getpid()


def test_an_error_of_a_worker_process_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        Simulation().run(off_loop(int, "x", process=True))


# -- threads that wait for the loop


def call_and_wait(loop, seconds):
    asyncio.run_coroutine_threadsafe(asyncio.sleep(seconds), loop).result()


async def in_a_thread_of_its_own(function, *args):
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def run():
        function(*args)
        loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run).start()
    await done


RUNNERS = {"to_thread": asyncio.to_thread, "off_loop": off_loop, "thread": in_a_thread_of_its_own}
runners = pytest.mark.parametrize("run", RUNNERS.values(), ids=RUNNERS)


@runners
async def test_a_thread_that_waits_for_the_loop_lets_time_pass(msight_simulation, caplog, run):
    before = msight_simulation.now
    await run(call_and_wait, asyncio.get_running_loop(), DAY)
    assert msight_simulation.now - before >= DAY
    assert not caplog.messages  # at once, and not when patience is over


async def test_a_worker_that_waits_for_the_loop_by_anyio_lets_time_pass(msight_simulation, caplog):
    before = msight_simulation.now
    await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(asyncio.sleep, DAY))
    assert msight_simulation.now - before >= DAY
    assert not caplog.messages


@runners
@pytest.mark.parametrize("other", RUNNERS.values(), ids=RUNNERS)
async def test_a_thread_that_waits_does_not_hide_one_that_works(msight_simulation, run, other):
    order = []

    async def recorded(awaitable, name):
        await awaitable
        order.append(name)

    await asyncio.gather(
        recorded(run(call_and_wait, asyncio.get_running_loop(), 1), "waits"), recorded(other(work), "works")
    )
    assert order == ["works", "waits"]


@runners
async def test_what_the_loop_begins_itself_is_no_call_of_a_thread(msight_simulation, run):
    loop = asyncio.get_running_loop()
    called = asyncio.Event()

    def call_then_work():
        loop.call_soon_threadsafe(called.set)
        return work()

    working = asyncio.create_task(run(call_then_work))
    await called.wait()
    sleeping = asyncio.create_task(asyncio.sleep(1))
    await working
    assert not sleeping.done()
    await sleeping


@runners
async def test_a_thread_works_again_when_its_call_is_answered(msight_simulation, run):
    def call_then_work(loop):
        call_and_wait(loop, 1)
        return work()

    before = msight_simulation.now
    await run(call_then_work, asyncio.get_running_loop())
    assert msight_simulation.now - before < 1.5


async def test_a_thread_publishes_while_its_bus_is_cut(msight_simulation):
    async with msight_simulation.connect() as bus, bus.subscribe("a") as messages:
        loop = asyncio.get_running_loop()
        msight_simulation.disconnect(bus)
        loop.call_later(3, msight_simulation.reconnect, bus)
        await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(bus.publish("a", b"x"), loop).result())
        assert messages.stats.dropped == {}


# -- work that does not end


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("msight_bus.testing.work.PATIENCE", 0.1)


@runners
async def test_a_thread_that_waits_for_a_timer_does_not_hang(msight_simulation, impatient, caplog, run):
    """It cannot be told from one that works, so it is waited for, but not for ever."""
    released = threading.Event()
    asyncio.get_running_loop().call_later(DAY, released.set)
    await run(released.wait)
    assert len(caplog.messages) == 1
    assert "no longer waits for this work" in caplog.text
    async with asyncio.timeout(0.05):
        await run(work)  # what is new is waited for
    assert len(caplog.messages) == 1


async def test_a_server_is_not_waited_for_for_ever(msight_simulation, impatient, caplog):
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=subprocess.PIPE)
    before = msight_simulation.now
    await asyncio.sleep(DAY)
    await asyncio.sleep(DAY)
    assert msight_simulation.now - before >= 2 * DAY
    assert server.returncode is None
    await server.communicate(b"\n")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])
def test_patience_is_for_one_piece_of_work_not_for_its_worker(monkeypatch, caplog, process):
    async def scenario():
        await off_loop(work, process=process)  # starting a process takes its time
        monkeypatch.setattr("msight_bus.testing.work.PATIENCE", 25 * SECONDS)
        for _ in range(50):
            async with asyncio.timeout(0.01):
                await off_loop(work, process=process)

    Simulation().run(scenario())
    assert not caplog.messages


async def test_work_that_was_given_up_is_not_waited_for(msight_simulation, caplog):
    released = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(released.wait))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(DAY)
    released.set()
    assert not caplog.messages


def test_threads_of_before_are_not_waited_for(caplog):
    released = threading.Event()
    thread = threading.Thread(target=released.wait)
    thread.start()
    try:
        Simulation().run(asyncio.sleep(DAY), within=2 * DAY)
    finally:
        released.set()
        thread.join()
    assert not caplog.messages
