"""Tasks that run again, turns in order, and cancellation: on a virtual clock where time matters."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import weakref

import pytest

from msight_bus.tasks import Alarm, BackgroundTasks, Gate, reraise_swallowed, run_shielded

# `msight_simulation` gives a test a loop with a virtual clock.


def now() -> float:
    return asyncio.get_running_loop().time()


async def cancelled(task: asyncio.Task) -> None:
    await asyncio.wait((task,))
    assert task.cancelled()


class Fails:
    """Raises at each run but the last, after some seconds."""

    def __init__(self, times: int, lasts: float = 0.0) -> None:
        self.times = times
        self.lasts = lasts
        self.begun: list[float] = []

    async def __call__(self) -> None:
        self.begun.append(now())
        await asyncio.sleep(self.lasts)
        if len(self.begun) <= self.times:
            raise ZeroDivisionError


# -- BackgroundTasks


async def test_a_task_that_raises_is_logged_and_runs_again_after_a_growing_pause(msight_simulation, caplog):
    work = Fails(9)
    tasks = BackgroundTasks()
    start = now()
    await tasks.start(work, "watch")
    begun = [at - start for at in work.begun]
    pauses = [after - before for before, after in itertools.pairwise(begun)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], abs=0.01)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 9
    assert "'watch'" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    await tasks.stop()


async def test_a_task_that_has_ended_is_not_kept():
    tasks = BackgroundTasks()
    task = tasks.start(Fails(0), "watch")
    ended = weakref.ref(task)
    await task
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert ended() is None
    await tasks.stop()


async def test_a_task_that_ran_for_long_runs_again_after_the_shortest_pause(msight_simulation):
    work = Fails(5, lasts=6.0)
    tasks = BackgroundTasks()
    start = now()
    await tasks.start(work, "watch")
    assert now() - start == pytest.approx(6 * 6.0 + 5 * 0.05)


async def test_stopping_ends_what_runs_and_what_waits_to_run_again(msight_simulation):
    tasks = BackgroundTasks()
    lasting = tasks.start(asyncio.Event().wait, "lasting")
    failing = tasks.start(Fails(1000), "failing")
    await asyncio.sleep(20)
    await tasks.stop()
    assert lasting.cancelled()
    assert failing.cancelled()
    await tasks.stop()


async def test_a_cancellation_that_is_swallowed_comes_again(msight_simulation):
    swallowed = 0

    async def swallow():
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                swallowed += 1

    tasks = BackgroundTasks()
    task = tasks.start(swallow, "swallowing")
    await asyncio.sleep(0)
    await tasks.stop()
    assert (swallowed, task.done()) == (3, True)


async def test_a_task_may_stop_all_others_and_goes_on():
    tasks = BackgroundTasks()
    went_on = False

    async def stop():
        nonlocal went_on
        await tasks.stop()
        went_on = True

    lasting = tasks.start(asyncio.Event().wait, "lasting")
    await tasks.start(stop, "stopping")
    assert lasting.cancelled()
    assert went_on


# -- Gate


async def test_turns_come_in_the_order_of_the_calls():
    gate, turns = Gate(), []

    async def take_turns(number):
        for _ in range(2):
            async with gate.turn(5):
                turns.append(number)
                await asyncio.sleep(0)

    await asyncio.gather(*(take_turns(number) for number in range(3)))
    assert turns == [0, 1, 2] * 2
    assert gate.waiting == 0


async def test_whoever_waits_and_whoever_has_a_turn_is_counted():
    gate, over = Gate(), asyncio.Event()

    async def have_a_turn():
        async with gate.turn(5):
            await over.wait()

    turns = [asyncio.create_task(have_a_turn()) for _ in range(3)]
    await asyncio.sleep(0)
    assert gate.waiting == 3
    turns[1].cancel()
    await asyncio.wait((turns[1],))
    assert gate.waiting == 2
    over.set()
    await asyncio.gather(turns[0], turns[2])
    assert gate.waiting == 0


async def test_a_deadline_covers_those_in_front_and_the_turn_itself(msight_simulation):
    gate, start = Gate(), now()

    async def last(seconds, within):
        try:
            async with gate.turn(within):
                await asyncio.sleep(seconds)
        except TimeoutError:
            return "late", now() - start
        return "done", now() - start

    ends = await asyncio.gather(last(3, 5), last(1, 2), last(10, 6), last(1, 60))
    assert [how for how, _ in ends] == ["done", "late", "late", "done"]
    assert [at for _, at in ends] == pytest.approx([3, 2, 6, 7], abs=0.01)
    assert gate.waiting == 0


# -- cancellation


async def test_what_is_shielded_ends_before_the_cancellation_is_raised():
    ended = False

    async def release():
        nonlocal ended
        for _ in range(5):
            await asyncio.sleep(0)
        ended = True

    task = asyncio.create_task(run_shielded(release()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await cancelled(task)
    assert ended


async def test_what_is_shielded_may_fail():
    async def release():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_shielded(release())
    task = asyncio.create_task(run_shielded(release()))
    await asyncio.sleep(0)
    task.cancel()
    await cancelled(task)  # the cancellation is what counts


async def test_a_cancellation_that_a_client_swallowed_is_raised_again():
    async def swallow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "result"

    task = asyncio.create_task(reraise_swallowed(swallow()))
    await asyncio.sleep(0)
    task.cancel()
    await cancelled(task)


async def test_a_cancellation_that_work_turns_into_an_error_is_raised_instead_of_it():
    async def swallow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError from None

    task = asyncio.create_task(reraise_swallowed(swallow()))
    await asyncio.sleep(0)
    task.cancel()
    await cancelled(task)


async def test_an_error_comes_through_although_there_was_a_cancellation_before():
    async def fail():
        raise ConnectionError

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        await reraise_swallowed(fail())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ConnectionError):
        await task


async def test_a_result_comes_through_although_there_was_a_cancellation_before():
    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return await reraise_swallowed(asyncio.sleep(0, "result"))

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "result"


async def test_the_time_left_until_an_alarm_is_bounded():
    alarm, now = Alarm(lambda: None), asyncio.get_running_loop().time()
    for when, left in [(None, 5.0), (now + 1000, 5.0), (now - 1, 0.0)]:
        alarm.set(when)
        assert alarm.left(5.0) == left
    alarm.set(None)
