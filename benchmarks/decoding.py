"""``python -m benchmarks decoding``: the time to decode a message of each type, compared with msgspec alone and with ``payload``.

Without a broker and in one process. A time is the shortest of many repetitions, which other work on the machine disturbs least.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import msgspec
import typer

from msight_bus import BytesData, Json, Message, SensorData
from msight_bus.data.types import PayloadType, payload_type
from msight_bus.settings import Limits


class Track(msgspec.Struct):
    sensor: str
    speed: float
    box: tuple[float, float, float, float]


class Tracks(SensorData, tag="benchmarks.Tracks"):
    tracks: list[Track]


class Cloud(SensorData, tag="benchmarks.Cloud"):
    points: list[tuple[float, float, float, float]]


class Loose(SensorData, tag="benchmarks.Loose"):
    points: Any


_TRACK = Track("cam_ne", 12.5, (0.5, 1.5, 4.5, 1.75))
_POINTS = [(n * 0.7, n * 0.3, n * 0.1, 0.25) for n in range(60_000)]
_LIMITS = Limits()

ROWS: dict[str, tuple[Any, Any]] = {
    "bytes, 128 B": (bytes, bytes(128)),
    "BytesData, 128 B": (BytesData, BytesData(data=bytes(128))),
    "BytesData, 200 KB": (BytesData, BytesData(data=bytes(200_000))),
    "struct": (Track, _TRACK),
    "struct as JSON": (Json[Track], _TRACK),
    "50 tracks": (Tracks, Tracks(tracks=[_TRACK] * 50)),
    "50 tracks, Any": (Loose, Loose(points=[msgspec.structs.asdict(_TRACK)] * 50)),
    "60,000 points": (Cloud, Cloud(points=_POINTS)),
    "60,000 points, Any": (Loose, Loose(points=_POINTS)),
    "7 MB of nil, Any": (Loose, Loose(points=[None] * 7_000_000)),
}


def main(seconds: Annotated[float, typer.Option(min=0, help="Seconds of a measurement.")] = 0.5) -> None:
    """Measure the decoding of each type."""
    typer.echo(f"{'':20}{'bytes':>10}{'payload, us':>14}{'msgspec, us':>14}{'data, us':>14}{'/ msgspec':>11}")
    for name, (kind, value) in ROWS.items():
        known = payload_type(kind)
        payload = known.encode(value)
        decode = partial(known.decode, max_bytes=_LIMITS.max_decoded_bytes, max_nesting=_LIMITS.max_nesting)
        plain = _shortest(lambda p=payload, d=decode: Message("t", p, _decode=d).payload, seconds)
        alone = _shortest(partial(_alone(kind, known), payload), seconds)
        typed = _shortest(lambda p=payload, d=decode: Message("t", p, _decode=d).data, seconds)
        typer.echo(f"{name:20}{len(payload):>10,}{plain:>14.2f}{alone:>14.2f}{typed:>14.2f}{typed / alone:>11.2f}")


def _alone(kind: Any, known: PayloadType[Any]) -> Callable[[bytes], Any]:
    if kind is bytes:
        return bytes
    decoder = msgspec.json.Decoder if known.name.startswith("Json") else msgspec.msgpack.Decoder
    return decoder(known.classes[0]).decode


def _shortest(run: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a call, in microseconds."""
    timer = timeit.Timer(run)
    once = max(timer.timeit(1), 1e-7)
    number = max(1, int(seconds / 10 / once))
    return min(timer.repeat(10 if seconds else 1, number)) / number * 1e6
