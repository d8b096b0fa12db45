"""Work that keeps a processor busy does not keep the loop busy."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from msight_bus import run
from msight_bus.nodes import NodeConfig, off_loop
from tests.support.nodes import Apply, Collect, Numbers, running


async def test_a_thread():
    assert await off_loop(pow, 2, 10) == 1024
    assert await off_loop(threading.get_ident) != threading.get_ident()


def test_a_process():
    assert run(off_loop(os.getpid, process=True)) != os.getpid()


@pytest.mark.parametrize("process", [False, True])
def test_its_error_is_the_callers(process):
    with pytest.raises(ZeroDivisionError):
        run(off_loop(divmod, 1, 0, process=process))


async def test_a_slow_node_does_not_hold_up_another(memory):
    release = threading.Event()

    async def compute(data):
        await off_loop(release.wait)
        return data

    slow = Apply(NodeConfig(name="slow", subscribe_topic_name="numbers", publish_topic_name="late"), compute)
    other = Collect(NodeConfig(name="other", subscribe_topic_name="numbers"))
    try:
        async with memory.connect() as bus, running(bus, slow, other):
            await Numbers(NodeConfig(name="source", publish_topic_name="numbers"), count=3).run(bus)
            await other.until(3)
            assert slow._node_run.meter.messages_out == 0
            release.set()
    finally:
        release.set()
    assert slow._node_run.meter.messages_out == 3


async def test_a_cancelled_call_does_not_wait_for_its_thread():
    release = threading.Event()
    started = threading.Event()

    def wait():
        started.set()
        release.wait()

    task = asyncio.create_task(off_loop(wait))
    while not started.is_set():
        await asyncio.sleep(0)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        release.set()


def test_a_cancelled_call_kills_its_process(tmp_path):
    started = tmp_path / "started"

    async def cancel():
        worker = await off_loop(os.getpid, process=True)
        task = asyncio.create_task(off_loop(touch_and_sleep, str(started), process=True))
        while not started.exists():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return worker

    worker = run(cancel())
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def touch_and_sleep(path):
    """Say that it has begun, then take for ever."""
    Path(path).touch()
    time.sleep(600)


@pytest.mark.parametrize("process", [False, True])
async def test_a_function_that_raises_stop_iteration_is_an_error(process):
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await off_loop(next, iter(()), process=process)


async def test_a_result_that_cannot_be_read_here_costs_no_process():
    for _ in range(3):
        with pytest.raises(TypeError):
            await off_loop(UnreadableError, "one", process=True)
    assert len(multiprocessing.active_children()) <= 1


class UnreadableError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, one, two="two"):
        super().__init__(one, two, "three")


async def test_a_process_that_was_killed_while_it_waited_is_replaced():
    killed = await off_loop(os.getpid, process=True)
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    assert await off_loop(os.getpid, process=True) != killed
