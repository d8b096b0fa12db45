"""What mypy and pyright see of the public interface; `make check` runs both over this file, nothing runs it.

`assert_type` fails for another type. A comment that expects an error is itself an error where there is none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_type

import msgspec
import pydantic

from msight_bus import (
    Bus,
    Data,
    ImageData,
    Json,
    Message,
    NodeConfig,
    Outgoing,
    ProcessingNode,
    Publisher,
    SensorData,
    SinkNode,
    SourceNode,
    Subscription,
)


class Track(SensorData):
    speed: float


class Fixed(SensorData, frozen=True):
    speed: float


class Point(msgspec.Struct):
    x: float


@dataclass
class Box:
    width: float


class Model(pydantic.BaseModel):
    name: str


async def subscriptions(bus: Bus) -> None:
    assert_type(bus.subscribe("a"), Subscription[Data])
    assert_type(bus.subscribe("a", type=None, deadline=1.0), Subscription[Data])
    assert_type(bus.subscribe("a", type=Track, group_id="g"), Subscription[Track])
    assert_type(bus.subscribe("a", type=Track | ImageData), Subscription[Track | ImageData])
    assert_type(bus.subscribe("a", type=Point), Subscription[Point])
    assert_type(bus.subscribe("a", type=Box), Subscription[Box])
    assert_type(bus.subscribe("a", type=Model), Subscription[Model])
    assert_type(bus.subscribe("a", type=bytes), Subscription[bytes])
    assert_type(bus.subscribe("a", type=Json[dict[str, list[int]]]), Subscription[dict[str, list[int]]])
    assert_type(bus.subscribe("a", type=Json[Point]), Subscription[Point])
    bus.subscribe("a", type=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async with bus.subscribe("a", type=Track | ImageData) as messages:
        async for message in messages:
            assert_type(message, Message[Track | ImageData])
            assert_type(message.data, Track | ImageData)
            assert_type(message.view, memoryview)
            float(message.data.speed)  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
        async for batch in messages.batches(10):
            assert_type(batch, list[Message[Track | ImageData]])


async def publishers(bus: Bus) -> None:
    assert_type(bus.publisher("a", type=Track, spread=True), Publisher[Track])
    async with bus.publisher("a") as untyped:
        await untyped.send(b"")
        await untyped.send(Track(speed=1.0))
        await untyped.send("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with bus.publisher("a", type=Point) as points:
        await points.send(Point(1.0), key="k")
        await points.send(b"")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with bus.publisher("a", type=Track | ImageData) as either:
        await either.send(ImageData())
        await either.send(Point(1.0))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with bus.publisher("a", type=Json[list[int]]) as numbers:
        await numbers.send([1])
        await numbers.send(["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def handles(message: Message, track: Message[Track], sensor: Message[SensorData], fixed: Fixed) -> Message[SensorData]:
    assert_type(message.data, Data)
    message.payload.decode()
    sensor.data.frame_id.bit_length()
    fixed.speed = 2.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    return track


class Camera(SourceNode[ImageData]):
    async def stream(self) -> AsyncIterator[ImageData | Outgoing[ImageData]]:
        yield ImageData()
        yield Outgoing(ImageData(), key="ne")


class WrongCamera(SourceNode[ImageData]):
    async def get_data(self) -> Track:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return Track(speed=1.0)


class Detector(ProcessingNode[ImageData, Json[list[int]]]):
    async def process(self, data: ImageData) -> list[list[int]]:
        return [list(data.size or ())]


class WrongInput(ProcessingNode[ImageData, Track]):
    async def process(self, data: Point) -> Track:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return Track(speed=data.x)


class WrongOutput(ProcessingNode[ImageData, Track]):
    async def process(self, data: ImageData) -> Point:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return Point(1.0)


class Store(SinkNode[Track | Fixed]):
    async def on_message(self, data: Track | Fixed) -> None:
        assert_type(data.speed, float)


class Untyped(ProcessingNode):
    async def process(self, data: Any) -> bytes | None:
        return bytes(data)


class UntypedSink(SinkNode):
    async def on_message(self, data: bytes) -> None:
        assert_type(self.config, NodeConfig)
