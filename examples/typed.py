"""Typed topics: a publisher that takes tracks, and a subscription and a node that receive them.

python examples/typed.py
"""

import asyncio

import msgspec

import msight_bus
from msight_bus import Bus, DecodeError, Json, NodeConfig, ProcessingNode
from msight_bus.nodes import run_until


class Track(msgspec.Struct):  # also a Data class, a dataclass or a pydantic model
    sensor: str
    speed: float
    box: tuple[float, float, float, float]


class Count(ProcessingNode[Track, Json[dict[str, int]]]):
    """Receives tracks and publishes the number of tracks of each sensor, as JSON."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.counts: dict[str, int] = {}

    async def process(self, data: Track) -> dict[str, int]:
        self.counts[data.sensor] = self.counts.get(data.sensor, 0) + 1
        return self.counts


async def publish(bus: Bus) -> None:
    async with bus.publisher("site.tracks", type=Track) as publisher:
        await publisher.send(Track("cam_ne", 12.5, (0.0, 0.0, 4.5, 1.8)))
        try:
            await publisher.send("cam_ne")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        except msight_bus.PayloadError as error:
            print("not sent:", error)
    await bus.publish("site.tracks", b"no track")
    await bus.publish("site.tracks", msgspec.msgpack.encode(Track("cam_sw", 8.0, (1.0, 1.0, 4.2, 1.7))))


async def main() -> None:
    node = Count(NodeConfig(name="count", subscribe_topic_name="site.tracks", publish_topic_name="site.counts"))
    stop = asyncio.Event()
    async with (
        msight_bus.connect() as bus,
        bus.subscribe("site.tracks", type=Track) as tracks,
        bus.subscribe("site.counts", type=Json[dict[str, int]]) as counts,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(run_until(bus, node, stop=stop))
        while node.status != "RUNNING":
            await asyncio.sleep(0.05)
        await publish(bus)
        for _ in range(3):
            message = await anext(tracks)
            try:
                print(f"{message.data.sensor}: {message.data.speed:.1f} m/s, {len(message.view)} bytes")
            except DecodeError as error:
                print("skipped:", error)
        for _ in range(2):
            print((await anext(counts)).data)
        stop.set()


if __name__ == "__main__":
    msight_bus.run(main())
