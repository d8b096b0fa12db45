"""Kafka: the broker is killed, members come, go and are killed, and nothing that was acknowledged may be lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from msight_bus import Subscription, brokers
from tests.faults.soak.course import Course
from tests.support.brokers import Backend
from tests.support.commits import watched_commits
from tests.support.ledger import Ledger
from tests.support.rig import own_broker, python
from tests.support.stream import Sender, Traffic, take_all

TOPIC, GROUP, KEYS = "soak", "g", 8
_PATIENT = {"MSIGHT_PUBLISH_TIMEOUT": "60", "MSIGHT_CONNECT_TIMEOUT": "30"}
_MEMBER = {**_PATIENT, "MSIGHT_KAFKA_SESSION_TIMEOUT": "3"}
_SETTLED_WITHIN = 120.0


async def soak(course: Course) -> None:
    """Kills and rebalances in turn, as the seed has it, while eight keys are published."""
    with own_broker("kafka") as (broker, backend):
        course.uses(broker)
        ledger = course.ledgers[TOPIC]
        async with AsyncExitStack() as stack:
            sending = await stack.enter_async_context(backend.connect(events=course.listener(), **_PATIENT))
            await stack.enter_async_context(watched_commits(backend, TOPIC, GROUP, ledger))
            steady = await stack.enter_async_context(_member(course, backend))
            senders = [Sender(sending, TOPIC, ledger, course.rng) for _ in range(KEYS)]
            flows = [Traffic(sender, steady, ledger, f"k{i}") for i, sender in enumerate(senders)]
            sending_all = [
                asyncio.create_task(sender.run(key=f"k{i}", burst=5, pause=0.03), name=f"sender {i}")
                for i, sender in enumerate(senders)
            ]
            try:
                await _harm(course, broker, backend, flows)
                await _settle(course, ledger, senders, sending_all)
            finally:
                for task in sending_all:
                    task.cancel()
                await asyncio.wait(sending_all)


async def _harm(course: Course, broker: brokers.RunningBroker, backend: Backend, flows: list[Traffic]) -> None:
    plan, rng = course.plan, course.rng
    while course.goes_on("kills", plan.kills) or course.goes_on("rebalances", plan.rebalances):
        kill = course.goes_on("kills", plan.kills)
        members = course.goes_on("rebalances", plan.rebalances)
        if kill and (not members or rng.random() < 0.6):
            await _kill(course, broker, flows)
        elif rng.random() < 0.7:
            async with _member(course, backend):
                course.done["rebalances"] += 1
                if kill and rng.random() < 0.5:
                    await _kill(course, broker, flows)
                await _flow(flows)
            course.done["rebalances"] += 1
        else:
            await _member_that_is_killed(course, backend, flows)
        await _flow(flows)


async def _kill(course: Course, broker: brokers.RunningBroker, flows: list[Traffic]) -> None:
    await asyncio.sleep(course.rng.uniform(0.2, 1.5))
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.restart)
    waiting = [asyncio.create_task(flow.flows(messages=1, within=60)) for flow in flows]
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    course.recovered.append(min(task.result() for task in done))
    await asyncio.gather(*pending)
    course.done["kills"] += 1


async def _flow(flows: list[Traffic]) -> None:
    await asyncio.gather(*(flow.flows(messages=5, within=60) for flow in flows))


async def _settle(course: Course, ledger: Ledger, senders: list[Sender], tasks: list[asyncio.Task[None]]) -> None:
    """Stop publishing and wait until all that was acknowledged has arrived; the verdict tells what has not."""
    for sender in senders:
        sender.stop.set()
    await asyncio.gather(*tasks)
    limit = time.monotonic() + _SETTLED_WITHIN
    while ledger.account().silent and time.monotonic() < limit:
        await asyncio.sleep(0.5)
    course.done["messages published"] = sum(sender.number for sender in senders)


@asynccontextmanager
async def _member(course: Course, backend: Backend) -> AsyncIterator[Subscription]:
    """One member of the group, with a bus of its own."""
    async with backend.connect(events=course.listener(), **_MEMBER) as bus:
        async with bus.subscribe(TOPIC, group_id=GROUP) as messages:
            task = asyncio.create_task(take_all(messages, course.ledgers[TOPIC]), name="member")
            try:
                yield messages
            finally:
                if not task.cancel():
                    course.failures.append(f"a member ended: {task}")
                await asyncio.wait((task,))


async def _member_that_is_killed(course: Course, backend: Backend, flows: list[Traffic]) -> None:
    """It joins, works for a while, and dies with messages in hand: the others get those once its session has ended."""
    ledger = course.ledgers[TOPIC]
    async with python("-m", "tests.faults.peer", "subscribe", TOPIC, GROUP, env={**backend.env, **_MEMBER}) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        async with asyncio.timeout(60):
            await process.stdout.readline()
        course.done["rebalances"] += 1
        for _ in range(course.rng.randint(1, 100)):
            await _take_one(process, ledger)
            process.stdin.write(b"\n")
        process.kill()
        while await _take_one(process, ledger):
            pass
    course.done["rebalances"] += 1
    course.done["members killed"] += 1


async def _take_one(process: asyncio.subprocess.Process, ledger: Ledger) -> bool:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = await process.stdout.readline()
    if line:
        key, life, number, _ = line.decode().split()
        ledger.delivered((key, int(life)), int(number), time.time())
    return bool(line)
