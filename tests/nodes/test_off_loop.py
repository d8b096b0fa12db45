"""Work that keeps a processor busy does not keep the loop busy."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import weakref
from contextlib import suppress
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
    with pytest.raises(ZeroDivisionError) as caught:
        run(off_loop(divmod, 1, 0, process=process))
    notes = getattr(caught.value, "__notes__", [])
    assert ["in the process of off_loop" in note for note in notes] == [True] * process


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


async def test_a_late_cancellation_does_not_kill_the_process_of_another_call(tmp_path):
    """The call is done, its process runs another call, and the event loop was busy meanwhile."""
    processes = range(os.cpu_count() or 1)
    await asyncio.gather(*(off_loop(time.sleep, 0.1, process=True) for _ in processes))
    done = [asyncio.create_task(off_loop(abs, -1, process=True)) for _ in processes]
    others = [asyncio.create_task(off_loop(touch_and_nap, str(tmp_path / str(n)), process=True)) for n in processes]
    await asyncio.sleep(0)  # the calls are submitted
    while len(list(tmp_path.iterdir())) < len(others):
        time.sleep(0.005)  # the event loop is busy
    for task in done:
        task.cancel()
    assert await asyncio.gather(*others) == ["done"] * len(others)


def touch_and_nap(path):
    """Report the start, and take longer than a kill."""
    Path(path).touch()
    time.sleep(1)
    return "done"


def touch_and_sleep(path):
    """Say that it has begun, then take for ever."""
    Path(path).touch()
    time.sleep(600)


@pytest.mark.parametrize("process", [False, True])
async def test_a_function_that_raises_stop_iteration_is_an_error(process):
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await off_loop(next, iter(()), process=process)


@pytest.mark.parametrize("process", [False, True])
async def test_a_function_that_exits_is_an_error_of_its_call_only(process):
    """(celery 10667) A command line's code in a handler, for instance."""
    with pytest.raises(RuntimeError, match=r"exit raised SystemExit\(3\)"):
        await off_loop(sys.exit, 3, process=process)


async def test_an_error_keeps_nothing_alive():
    """(dramatiq 351, 878, celery 8882) A frame is some megabytes, and the garbage is collected late."""

    class Frame:
        pass

    async def detect():
        frame = Frame()
        frames.add(frame)
        await off_loop(divmod, 1, 0, process=True)

    frames = weakref.WeakSet()
    gc.disable()
    try:
        with suppress(ZeroDivisionError):
            await detect()
        async with asyncio.timeout(10):
            while frames:  # the thread that asked the process lets go of them when it is free
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_process_that_ended_while_idle_fails_no_call():
    """(deadpool 157) The OOM killer takes any process."""
    worker = await off_loop(os.getpid, process=True)
    os.kill(worker, signal.SIGKILL)
    while worker in [process.pid for process in multiprocessing.active_children()]:
        await asyncio.sleep(0.01)
    assert await off_loop(pow, 2, 10, process=True) == 1024


async def test_a_process_that_is_killed_before_it_has_the_call_fails_no_call():
    """(skypilot 9742) A killed process is alive for a moment longer."""
    for number in range(20):
        os.kill(await off_loop(os.getpid, process=True), signal.SIGKILL)
        assert await off_loop(pow, 2, number, process=True) == 2**number


async def test_a_process_that_ends_in_a_call_fails_only_that_call_with_its_exit_code():
    """(temporalio 245, celery 2700) A pool of the standard library is broken after that."""
    others = [asyncio.create_task(off_loop(pow, 2, number, process=True)) for number in range(8)]
    with pytest.raises(RuntimeError, match="_exit ended before its result, with exit code 7"):
        await off_loop(os._exit, 7, process=True)
    assert await asyncio.gather(*others) == [1, 2, 4, 8, 16, 32, 64, 128]


async def test_a_forked_child_does_not_use_the_processes_of_its_parent():
    """Two programs at one pipe take each other's results."""
    worker = await off_loop(os.getpid, process=True)
    child = multiprocessing.get_context("fork").Process(target=check_worker, args=(worker,))
    child.start()
    await asyncio.to_thread(child.join)
    assert child.exitcode == 0
    assert await off_loop(os.getpid, process=True) == worker


def check_worker(worker):
    """End with status 1 if `off_loop` uses the process ``worker``."""
    sys.exit(run(off_loop(os.getpid, process=True)) == worker)


async def test_a_result_that_cannot_be_unpickled_keeps_the_process():
    worker = await off_loop(os.getpid, process=True)
    for _ in range(3):
        with pytest.raises(TypeError):
            await off_loop(UnreadableError, "one", process=True)
    assert await off_loop(os.getpid, process=True) == worker


class UnreadableError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, one, two="two"):
        super().__init__(one, two, "three")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory with RLIMIT_AS and /proc")
async def test_a_result_without_room_in_memory_ends_the_process():
    """The pipe still holds the result; another call on the process would receive it."""
    worker = await off_loop(os.getpid, process=True)
    await off_loop(abs, -1, process=True)  # the thread that asks the process runs before the limit
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, before[1]))
    try:
        with pytest.raises(MemoryError):
            await off_loop(bytes, 400_000_000, process=True)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    async with asyncio.timeout(30):
        assert await off_loop(os.getpid, process=True) != worker


async def test_a_child_that_the_function_forks_sends_no_answer():
    for _ in range(3):
        assert await off_loop(fork, process=True) == "parent"
    assert [await off_loop(abs, -n, process=True) for n in range(6)] == list(range(6))


def fork():
    """Return in the child and, later, in the parent."""
    if not os.fork():
        return "child"
    time.sleep(0.2)
    return "parent"


async def test_a_cancelled_call_is_over_though_a_child_of_its_process_runs_on(tmp_path):
    processes = range(os.cpu_count() or 1)
    paths = [tmp_path / str(number) for number in processes]
    tasks = [asyncio.create_task(off_loop(fork_and_sleep, str(path), process=True)) for path in paths]
    while not all(path.exists() for path in paths):
        await asyncio.sleep(0.005)
    try:
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(30):
            await asyncio.wait(tasks)
            assert await off_loop(abs, -1, process=True) == 1
    finally:
        for path in paths:
            os.kill(int(path.read_text()), signal.SIGKILL)


def fork_and_sleep(path):
    """Report the child, then take for ever, as the child does."""
    if child := os.fork():
        Path(path + ".new").write_text(str(child))
        Path(path + ".new").rename(path)
    time.sleep(600)


async def test_a_process_is_used_again():
    assert await off_loop(os.getpid, process=True) == await off_loop(os.getpid, process=True)


async def test_a_process_that_ends_costs_only_its_own_call():
    with pytest.raises(RuntimeError, match=r"The process of _exit ended before its result"):
        await off_loop(os._exit, 3, process=True)
    assert await off_loop(pow, 2, 3, process=True) == 8


async def test_calls_that_wait_for_each_other_get_a_thread_each():
    await off_loop(pow, 2, 3)  # leaves an idle thread
    together = threading.Barrier(30, timeout=20)
    await asyncio.gather(*(off_loop(together.wait) for _ in range(30)))


async def test_at_most_40_threads_run_and_further_calls_wait():
    running, most, go_on, lock = 0, 0, threading.Event(), threading.Lock()

    def hold():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go_on.wait(20)
        with lock:
            running -= 1

    calls = [asyncio.create_task(off_loop(hold)) for _ in range(50)]
    while running < 40:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # a thread too many would start now
    go_on.set()
    await asyncio.gather(*calls)
    assert most == 40


async def test_a_process_that_was_killed_while_it_waited_is_replaced():
    killed = await off_loop(os.getpid, process=True)
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    assert await off_loop(os.getpid, process=True) != killed
