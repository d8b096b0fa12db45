"""Load sharing: three workers with one group_id share a stream.

    MSIGHT_PUBSUB_BACKEND=nats python examples/load_sharing.py

On Redis, each worker receives all messages, and a CapabilityWarning reports it. On Kafka, messages with the same key go to the
same worker.
"""

import asyncio
from collections import Counter

import msight_bus

FRAMES = 300


async def worker(bus: msight_bus.Bus, name: str, counts: Counter[str], ready: asyncio.Barrier) -> None:
    async with bus.subscribe("site.frames", group_id="detectors") as frames:
        await ready.wait()
        async for _ in frames:
            counts[name] += 1
            await asyncio.sleep(0)  # the work


async def main() -> None:
    counts: Counter[str] = Counter()
    ready = asyncio.Barrier(4)
    async with msight_bus.connect() as bus, asyncio.TaskGroup() as tasks:
        shares = bus.capabilities.load_balancing
        for i in range(3):
            tasks.create_task(worker(bus, f"worker {i}", counts, ready))
        await ready.wait()
        async with bus.publisher("site.frames") as publisher:
            for i in range(FRAMES):
                await publisher.send(b"a frame", key=f"camera {i % 30}")
        while counts.total() < (FRAMES if shares else 3 * FRAMES):
            await asyncio.sleep(0.01)
        await bus.drain()  # ends the loops of the workers
    for name, count in sorted(counts.items()):
        print(f"{name} received {count} of {FRAMES} frames")
    print("shared" if shares else f"{bus.backend} does not share: each worker received all frames")


msight_bus.run(main())
