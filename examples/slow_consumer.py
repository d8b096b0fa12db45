"""A consumer slower than its camera: the effect of `block`, `drop_oldest` and `latest(1)` on 100 frames.

python examples/slow_consumer.py
"""

import asyncio

import msight_bus
from msight_bus import QueuePolicy

POLICIES = {
    "block": QueuePolicy.block(10),
    "drop_oldest": QueuePolicy.drop_oldest(10),
    "latest": QueuePolicy.latest(1),
}


async def consume(bus: msight_bus.Bus, name: str, ready: asyncio.Barrier) -> str:
    frames: list[int] = []
    async with bus.subscribe("site.cam", queue=POLICIES[name]) as messages:
        await ready.wait()
        async for message in messages:
            frames.append(int(message.payload))
            if frames[-1] == 99:
                break
            await asyncio.sleep(0.02)  # the work takes longer than the interval of the frames
        return f"{name:12} handled {len(frames):3} of 100 frames, dropped {dict(messages.stats.dropped)}"


async def main() -> None:
    ready = asyncio.Barrier(len(POLICIES) + 1)
    async with msight_bus.connect() as bus, asyncio.TaskGroup() as tasks:
        consumers = [tasks.create_task(consume(bus, name, ready)) for name in POLICIES]
        await ready.wait()
        for i in range(100):
            await bus.publish("site.cam", b"%d" % i)
            await asyncio.sleep(0.001)
        for consumer in consumers:
            print(await consumer)


msight_bus.run(main())
