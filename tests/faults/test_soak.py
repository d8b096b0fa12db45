"""The verdict of a soak detects each broken promise, and a short soak of each backend passes."""

from __future__ import annotations

import asyncio
import json

import pytest

from msight_bus.events import Gap
from tests.faults.soak.course import HARMED, Course, Plan
from tests.support.rig import EVERY, python


async def verdict(*, memory=(60, 60), left=(), harm=lambda course: None):
    """What is said of a soak that did all it had to, after it was harmed."""
    course = Course(Plan("redis", 1, 60, kills=1, faults=1, rebalances=0), say=lambda line: None)
    course.done.update(kills=1, faults=1)
    course.recovered.append(0.1)
    course._memory = [round(memory[0] * 2**20)] * 50 + [round(memory[1] * 2**20)] * 50
    course.ledgers["a"].acknowledged("s", 1, 0.0)
    course.ledgers["a"].delivered("s", 1, 0.0)
    harm(course)
    course.note_tasks_left()
    return course.verdict(course.figures(list(left)))


def lose_without_size(ledger):
    ledger.announced(None, 0.5)
    ledger.delivered("s", 3, 1.0)


async def test_a_soak_without_a_broken_promise_passes():
    assert await verdict() == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda course: course.done.update(kills=-1), "0 of 1 kills"),
        (lambda course: course.recovered.append(2.5), "recovery p99"),
        (lambda course: course.ledgers["a"].delivered("s", 3, 1.0), "silent"),
        (lambda course: lose_without_size(course.ledgers["a"]), "unsized"),
        (lambda course: course.listener().append(Gap("a", 7, "lost")), "overstated"),
        (lambda course: course.ledgers["b"].unknown("s", 1, 0.0), "nothing was delivered"),
        (lambda course: course.failures.append("TypeError: x"), "TypeError"),
    ],
    ids=["counts", "recovery", "loss", "size", "overstatement", "standstill", "crash"],
)
async def test_a_broken_promise_fails_a_soak(harm, said):
    assert len([line for line in await verdict(harm=harm) if said in line]) == 1


async def test_a_late_message_is_accepted_after_a_disconnect_of_its_publisher_only():
    def late(course, topic):
        ledger = course.ledgers[topic]
        for sequence in (1, 3, 2):
            ledger.acknowledged("late", sequence, 0.0)
            ledger.delivered("late", sequence, 1.0)
            if sequence == 3:
                ledger.announced(1, 1.0)

    assert await verdict(harm=lambda course: late(course, HARMED)) == []
    assert "reordered" in (await verdict(harm=lambda course: late(course, "a")))[0]


async def test_growing_memory_and_leftovers_fail_a_soak():
    assert "memory grew" in (await verdict(memory=(60, 80)))[0]
    assert await verdict(memory=(60, 63)) == []
    assert await verdict(left=["descriptor 9 socket"]) == ["left over: descriptor 9 socket"]
    tasks = []
    wrong = await verdict(harm=lambda course: tasks.append(asyncio.create_task(asyncio.sleep(60), name="forgotten")))
    assert wrong == ["left over: task forgotten"]
    tasks[0].cancel()
    await asyncio.wait(tasks)


@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", EVERY)
async def test_a_short_soak_passes(kind, tmp_path):
    counts = ("--kills", "3", "--rebalances", "4") if kind == "kafka" else ("--kills", "5", "--faults", "30")
    run = ("-m", "tests.faults.soak", "--backend", kind, "--seconds", "200", *counts, "--out", str(tmp_path))
    async with python(*run, env={}) as process:
        await process.wait()
    (record,) = tmp_path.iterdir()
    assert json.loads(record.read_text())["wrong"] == []
