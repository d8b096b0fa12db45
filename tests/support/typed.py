"""One type of each kind that a topic can have, with a value of it, and payloads that no decoder should accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pydantic

from msight_bus import BytesData, Data, ImageData, Json, SensorData


class Track(SensorData):
    speed: float
    box: tuple[float, ...] = ()


class FastTrack(Track):
    gear: int = 1


class Point(msgspec.Struct):
    x: float
    y: float = 0.0
    notes: Any = None


@dataclass
class Box:
    width: float
    tags: list[str] = field(default_factory=list)


class Model(pydantic.BaseModel):
    name: str
    sizes: list[float] = []
    kind: str = pydantic.Field("car", alias="type")


MSGPACK, JSON = "application/msgpack", "application/json"
TYPES = {
    # name: type, value, content-type
    "data": (Data, Track(speed=1.5), None),
    "subclass": (Track, FastTrack(speed=1.5, box=(1.0, 2.0)), None),
    "union": (Track | ImageData, ImageData(image=b"x"), None),
    "struct": (Point, Point(1.5, notes=["a", {"b": None}]), MSGPACK),
    "dataclass": (Box, Box(1.5, ["a"]), MSGPACK),
    "pydantic": (Model, Model(name="a", sizes=[1.5], type="bus"), JSON),
    "json": (Json[dict[str, list[int]]], {"a": [1, 2]}, None),
    "json of a struct": (Json[Point], Point(1.5), JSON),
    "json of a model": (Json[Model], Model(name="a"), JSON),
    "json of models": (Json[list[Model]], [Model(name="a"), Model(name="b")], None),
    "bytes": (bytes, b"\x00\xff", None),
}
WRONG = {
    "data": Point(1.0),
    "subclass": BytesData(data=b""),
    "union": BytesData(data=b""),
    "struct": Box(1.0),
    "dataclass": Point(1.0),
    "pydantic": {"name": "a"},
    "json": {"a": ["b"]},
    "json of a struct": {"x": 1.0},
    "json of a model": Point(1.0),
    "json of models": [Point(1.0)],
    "bytes": "text",
}
NAMES = list(TYPES)
DECODED = [name for name in TYPES if name != "bytes"]

HOSTILE = {
    "nothing": b"",
    "text": b"no value of any type",
    "a number": b"7",
    "another map": b"\x81\xa1z\x01",
    "another object": b'{"z": [1], "a": 7}',
    "nested arrays": b"\x91" * 10_000 + b"\xc0",
    "nested maps": b"\x81\xa1x" * 10_000 + b"\xc0",
    "nested in a field of any type": b"\x82\xa1x\x01\xa5notes" + b"\x91" * 10_000 + b"\xc0",
    "nested JSON arrays": b"[" * 10_000 + b"]" * 10_000,
    "nested JSON objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "open JSON arrays": b"[" * 10_000,
    "a huge array": b"\xdd\xff\xff\xff\xff",
    "a huge map": b"\xdf\xff\xff\xff\xff\xa1x",
    "a huge string": b"\x81\xa1x\xdb\xff\xff\xff\xff",
    "an extension": b"\x82\xa1x\x01\xa5notes\xd4\x05\x00",
    "escapes": b'{"\x1b[31m": "\xff\xfe"}',
}
