"""Redis and NATS: the broker is killed, publishers die with it or alone, and connections are harmed at random bytes."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from msight_bus import brokers
from msight_bus.events import Disconnected, Reconnected
from tests.faults.soak.course import HARMED, MORTAL, Course
from tests.support.brokers import Backend
from tests.support.ledger import Ledger
from tests.support.proxy import FaultProxy
from tests.support.rig import own_broker, python, until
from tests.support.stream import Traffic, take_all, traffic

_STALLED = {"MSIGHT_PING_INTERVAL": "0.5", "MSIGHT_PONG_TIMEOUT": "0.5"}
"""A half-open link is noticed by default after 10 s; a soak has no time for many of those."""


async def soak(course: Course) -> None:
    """First the kills, with default settings, then the connection faults."""
    with own_broker(course.plan.backend) as (broker, backend):
        course.uses(broker)
        await _kills(course, broker, backend)
        await _connection_faults(course, broker, backend)


async def _kills(course: Course, broker: brokers.RunningBroker, backend: Backend) -> None:
    rng = course.rng
    async with AsyncExitStack() as stack:
        receiving = await stack.enter_async_context(backend.connect(events=course.listener()))
        sending = await stack.enter_async_context(backend.connect())
        flows = []
        for topic in ("living.one", "living.two"):
            flow = traffic(sending, receiving, topic, course.ledgers[topic], seed=rng.randrange(1000))
            flows.append(await stack.enter_async_context(flow))
        mortal = await stack.enter_async_context(receiving.subscribe(MORTAL))
        reading = asyncio.create_task(take_all(mortal, course.ledgers[MORTAL]), name="reader of mortal")
        life = 0
        while course.goes_on("kills", course.plan.kills):
            life += 1
            async with python("-m", "tests.faults.peer", "publish", MORTAL, str(life), env=backend.env) as publisher:
                confirmed = asyncio.create_task(_confirmed(publisher, life, course.ledgers[MORTAL]))
                await until(lambda life=life: course.ledgers[MORTAL].highest((None, life)))
                for _ in range(rng.randint(2, 15)):
                    await _kill(course, broker, flows)
                alone = rng.random() < 0.5
                if not alone:
                    await asyncio.to_thread(broker.kill)
                publisher.kill()
                await confirmed
            course.done["publishers killed"] += 1
            if not alone:
                await _come_back(course, broker, flows)
        reading.cancel()
        await asyncio.wait((reading,))


async def _confirmed(publisher: asyncio.subprocess.Process, life: int, ledger: Ledger) -> None:
    assert publisher.stdout is not None
    while line := await publisher.stdout.readline():
        ledger.acknowledged_to((None, life), int(line), time.time())


async def _kill(course: Course, broker: brokers.RunningBroker, flows: list[Traffic]) -> None:
    await asyncio.sleep(course.rng.uniform(0.2, 0.8))
    await asyncio.to_thread(broker.kill)
    await _come_back(course, broker, flows)


async def _come_back(course: Course, broker: brokers.RunningBroker, flows: list[Traffic]) -> None:
    """Most outages are short; one in ten lasts so long that the pauses between tries reach their maximum."""
    rng = course.rng
    await asyncio.sleep(rng.uniform(1, 4) if rng.random() < 0.1 else rng.uniform(0, 0.3))
    await asyncio.to_thread(broker.restart)
    course.recovered.append(max(await asyncio.gather(*(flow.flows(messages=1) for flow in flows))))
    course.done["kills"] += 1


async def _connection_faults(course: Course, broker: brokers.RunningBroker, backend: Backend) -> None:
    rng = course.rng
    ledger = course.ledgers[HARMED]
    async with FaultProxy(broker.port, seed=course.plan.seed) as proxy:
        behind = Backend(
            backend.name,
            {name: value.replace(str(broker.port), str(proxy.port)) for name, value in backend.env.items()},
        )
        events = course.listener()
        async with behind.connect(events=events, **_STALLED) as receiving, behind.connect(**_STALLED) as sending:
            async with traffic(sending, receiving, HARMED, ledger, seed=rng.randrange(1000)) as flow:
                while course.goes_on("faults", course.plan.faults):
                    proxy.conditions.slices = 1 + rng.randrange(2000) if rng.random() < 0.2 else None
                    await _harm(course, proxy)
                    course.done["faults"] += 1
                    await flow.flows(messages=1 + rng.randrange(20))
                proxy.conditions.slices = None


async def _harm(course: Course, proxy: FaultProxy) -> None:
    kind = course.rng.choices(("resets", "cuts", "stalls"), (10, 10, 0.2))[0]
    course.done[kind] += 1
    if kind == "resets":
        await proxy.reset()
    elif kind == "cuts":
        harmed = proxy.faults
        proxy.cut_after(course.rng.randrange(20_000))
        while proxy.faults == harmed:
            await asyncio.sleep(0.002)
    else:
        # A bus with two connections is disconnected from the first that is lost to the last that is back.
        await until(lambda: course.events[Disconnected.__name__] == course.events[Reconnected.__name__])
        lost = course.events[Disconnected.__name__]
        proxy.stall()
        await until(lambda: course.events[Disconnected.__name__] > lost, within=15)
        proxy.flow()
