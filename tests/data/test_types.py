from __future__ import annotations

import contextlib
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus import BytesData, ConfigError, Data, DecodeError, ImageData, Json, PayloadError
from msight_bus.data.types import payload_type
from tests.support.typed import DECODED, HOSTILE, NAMES, TYPES, Box, Model, Point, Track

LIMITS = {"max_bytes": 1 << 20, "max_nesting": 32}
named = pytest.mark.parametrize("name", NAMES)
T = TypeVar("T")


class Pair(msgspec.Struct, Generic[T]):
    left: T
    right: T


@named
def test_values_of_a_type_come_back(name):
    kind, value, content_type = TYPES[name]
    known = payload_type(kind)
    assert known.decode(known.encode(value), **LIMITS) == value
    assert known.content_type == content_type


@named
def test_a_type_can_be_sent_to_another_process(name):
    known = pickle.loads(pickle.dumps(payload_type(TYPES[name][0])))
    assert known.decode(known.encode(TYPES[name][1]), **LIMITS) == TYPES[name][1]


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_payloads_are_refused(name, payload):
    known = payload_type(TYPES[name][0])
    with pytest.raises(DecodeError) as caught:
        known.decode(HOSTILE[payload], **LIMITS)
    assert str(caught.value).startswith(f"{known.name}: ")


@pytest.mark.parametrize("name", DECODED)
@given(payload=st.binary(max_size=80))
def test_any_bytes_are_decoded_or_refused(name, payload):
    with contextlib.suppress(DecodeError):
        payload_type(TYPES[name][0]).decode(payload, **LIMITS)


@pytest.mark.parametrize("name", DECODED)
def test_truncations_and_trailing_bytes_are_refused(name):
    known = payload_type(TYPES[name][0])
    payload = known.encode(TYPES[name][1])
    for damaged in (*(payload[:length] for length in range(len(payload))), payload + b"\xc0", payload + payload):
        with pytest.raises(DecodeError):
            known.decode(damaged, **LIMITS)


def make_bombs() -> dict[str, tuple[Any, bytes]]:
    return {
        "empty arrays": (Point, b"\x82\xa1x\x01\xa5notes\xdd" + (2_000_000).to_bytes(4, "big") + b"\x90" * 2_000_000),
        "empty maps": (Point, b"\x82\xa1x\x01\xa5notes\xdd" + (2_000_000).to_bytes(4, "big") + b"\x80" * 2_000_000),
        "empty JSON arrays": (Json[Any], b"[" + b",".join([b"[]"] * 1_000_000) + b"]"),
        "empty JSON objects": (Json[Any], b"[" + b",".join([b"{}"] * 1_000_000) + b"]"),
        "numbers": (Json[list[float]], b"[" + b",".join([b"1"] * 2_000_000) + b"]"),
        "models": (Json[list[Model]], b"[" + b",".join([b'{"name":""}'] * 300_000) + b"]"),
        "arrays for a model": (Model, b'{"name": "a", "x": [' + b",".join([b"[]"] * 1_000_000) + b"]}"),
    }


def refuse_all_bombs() -> int:
    """Run in a process of its own: how much its peak memory grows, in KiB."""
    import resource

    bombs = make_bombs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, payload in bombs.values():
        with contextlib.suppress(DecodeError):
            payload_type(kind).decode(payload, max_bytes=64 << 20, max_nesting=32)
            raise AssertionError(kind)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_refusing_bombs_takes_no_memory():
    command = [sys.executable, "-m", "tests.data.test_types"]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 24 * 1024


def test_a_thing_that_cannot_be_encoded_is_a_payload_error():
    with pytest.raises(PayloadError, match=r"This Point cannot be sent as Point: .*not supported"):
        payload_type(Point).encode(Point(1.0, notes=object()))
    with pytest.raises(PayloadError, match="nan|null"):
        payload_type(Json[Point]).encode(Point(float("nan")))
    assert payload_type(Point).decode(payload_type(Point).encode(Point(np.float32(1.5))), **LIMITS) == Point(1.5)


@pytest.mark.parametrize("value", [BytesData(data=b""), Data(), Point(1.0), b"", None])
@pytest.mark.parametrize("kind", [Track, Track | ImageData])
def test_only_values_of_the_type_are_encoded(kind, value):
    with pytest.raises(PayloadError, match=rf"must be of type .*Track.*, not {type(value).__name__}\."):
        payload_type(kind).encode(value)


def test_an_error_of_pydantic_names_the_field_and_not_the_input():
    with pytest.raises(DecodeError, match=r"^Model: The payload is not valid data: .* at sizes\.1$"):
        payload_type(Model).decode(b'{"name": "a", "sizes": [1, "secret"]}', **LIMITS)


def test_whatever_a_class_raises_is_a_decode_error():
    @dataclass
    class Picky:
        value: int

        def __post_init__(self):
            raise LookupError("never\n\x1b[31m fine" + "x" * 1000)

    with pytest.raises(DecodeError, match=r"LookupError: never\\n\\x1b") as caught:
        payload_type(Picky).decode(msgspec.msgpack.encode({"value": 1}), **LIMITS)
    assert len(str(caught.value)) < 400


def test_generic_types_constraints_and_none():
    pair = payload_type(Pair[int])
    assert pair.decode(pair.encode(Pair(1, 2)), **LIMITS) == Pair(1, 2)
    with pytest.raises(DecodeError):
        pair.decode(msgspec.msgpack.encode(Pair("a", "b")), **LIMITS)
    positive = payload_type(Json[Annotated[int, msgspec.Meta(gt=0)]])
    assert positive.decode(b"1", **LIMITS) == 1
    with pytest.raises(DecodeError, match="> 0|>= 1"):
        positive.decode(b"0", **LIMITS)
    assert payload_type(Json[int | None]).decode(b"null", **LIMITS) is None
    assert payload_type(Json[list[Box]]).decode(b'[{"width": 1}]', **LIMITS) == [Box(1.0)]


@pytest.mark.parametrize(
    "kind", [int, None, "Point", Point(1.0), list[int], Point | Box, Model | Point, Track | None, Json]
)
def test_what_is_no_type(kind):
    with pytest.raises(TypeError, match="Json"):
        payload_type(kind)


@pytest.mark.parametrize(
    "kind", [Json[contextlib.suppress], Json["NotDefined"], Json[dict[str, contextlib.suppress]]], ids=str
)
def test_a_type_that_cannot_be_decoded_is_an_error(kind):
    with pytest.raises(ConfigError, match="cannot be decoded"):
        payload_type(kind)


def test_a_class_that_cannot_be_decoded_is_named_inside_of_a_container():
    with pytest.raises(ConfigError, match=r"^dict\[str, numpy\.ndarray\]: a value of this class cannot be decoded"):
        payload_type(Json[dict[str, np.ndarray]])


def test_data_of_all_classes_and_the_closed_registry():
    payload = Track(speed=1.5).serialize()
    assert payload_type(Data | Track).decode(payload, **LIMITS) == Data.deserialize(payload)
    unknown = payload.replace(b"Track", b"Truck")
    with pytest.raises(DecodeError, match="No class is registered"):
        payload_type(Data).decode(unknown, **LIMITS)


def test_pydantic_is_imported_by_the_user_only():
    code = (
        "import sys, dataclasses, msgspec\nfrom msight_bus import Json\nfrom msight_bus.data.types import payload_type\n"
        "payload_type(dataclasses.make_dataclass('Box', [('a', int)])); payload_type(Json[dict[str, int]])\n"
        "assert not [name for name in sys.modules if name.startswith('pydantic')]\n"
        "import pydantic\nassert 'pydantic.main' not in sys.modules\npayload_type(Json[list[int]])\n"
        "assert 'pydantic.main' not in sys.modules\n"
        "print(payload_type(pydantic.create_model('M', a=(int, ...))).decode(b'{\"a\": 1}', 9999, 9))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "a=1\n"


def test_a_subclass_of_a_model_is_sent_as_the_model():
    class More(Model):
        extra: int = 3

    assert payload_type(Model).encode(More(name="a")) == b'{"name":"a","sizes":[],"type":"car"}'
    assert issubclass(More, pydantic.BaseModel)


if __name__ == "__main__":
    print(refuse_all_bombs())  # noqa: T201


class Measured(pydantic.BaseModel):
    value: float


class Required(pydantic.BaseModel):
    source: int = pydantic.Field(validation_alias="origin")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Measured, Measured(value=math.nan)),
        (Json[list[Measured]], [Measured(value=math.inf)]),
        (Required, Required(origin=1)),
        (Json[dict[str, float]], {"value": math.nan}),
    ],
    ids=["nan", "inf in a list", "another name", "nan without a model"],
)
def test_a_value_whose_payload_would_not_decode_is_a_payload_error(kind, value):
    """(pydantic 7007, 10824, msgspec 486) The subscribers would all refuse what the publisher sent without an error."""
    with pytest.raises(PayloadError, match=r"value|origin|float"):
        payload_type(kind).encode(value)
