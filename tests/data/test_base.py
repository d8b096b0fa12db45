from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.data import BytesData, Data, ImageData, SensorData
from msight_bus.errors import BusError, DecodeError, PayloadError

FINITE = st.floats(allow_nan=False)
FRAME_IDS = st.integers(min_value=0, max_value=2**63 - 1)
SENSOR = {
    "sensor_name": st.none() | st.text(),
    "capture_timestamp": FINITE,
    "creation_timestamp": FINITE,
    "frame_id": FRAME_IDS,
    "device_name": st.none() | st.text(),
}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FINITE | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
VALUES = (
    st.builds(SensorData, **SENSOR)
    | st.builds(BytesData, data=st.binary(), **SENSOR)
    | st.builds(
        ImageData,
        image=st.none() | st.binary(),
        is_encoded=st.booleans(),
        detection_results=PLAIN,
        size=st.none() | st.tuples(FRAME_IDS, FRAME_IDS, FRAME_IDS),
        **SENSOR,
    )
)


class Event(Data):
    when: datetime
    cause: Any = None


@given(VALUES)
def test_what_is_serialized_comes_back(value):
    assert Data.deserialize(value.serialize()) == value
    assert Data.from_dict(value.to_dict()) == value


@given(VALUES)
def test_msgpack_reads_what_we_write_as_msight_does(value):
    fields = msgpack.unpackb(value.serialize(), raw=False)
    assert next(iter(fields)) == "data_type"
    size = fields.get("size")
    expected = value.to_dict()
    assert {**expected, "size": list(expected["size"])} == fields if size else expected == fields


@given(VALUES)
def test_we_read_what_msight_writes(value):
    assert Data.deserialize(msgpack.packb(value.to_dict(), use_bin_type=True)) == value


def test_the_tags_are_those_of_msight_core():
    tags = [kind().to_dict()["data_type"] for kind in (SensorData, ImageData, lambda: BytesData(data=b""))]
    assert tags == [
        "msight_core.data.base.SensorData",
        "msight_core.data.image.ImageData",
        "msight_core.data.bytes.BytesData",
    ]


def test_a_message_of_msight_core_with_nested_detection_results():
    nested = {"data_type": "msight_core.data.detection_result.DetectionResultsData", "detection_result": None}
    packed = msgpack.packb(
        {
            "data_type": "msight_core.data.image.ImageData",
            "sensor_name": "cam_ne",
            "capture_timestamp": 1700000000.25,
            "creation_timestamp": 1700000000.5,
            "frame_id": 7253000000000000000,
            "device_name": "edge",
            "image": b"\xff\xd8",
            "is_encoded": True,
            "detection_results": nested,
            "size": (1080, 1920, 3),
        },
        use_bin_type=True,
    )
    image = ImageData.deserialize(packed)
    assert (image.sensor_name, image.frame_id, image.image) == ("cam_ne", 7253000000000000000, b"\xff\xd8")
    assert image.size == (1080, 1920, 3)
    assert image.detection_results == nested


def test_fields_that_a_newer_version_adds_are_ignored_and_missing_ones_take_their_default():
    packed = msgpack.packb({"data_type": "msight_core.data.bytes.BytesData", "data": b"x", "new": [1, {"a": 2}]})
    value = BytesData.deserialize(packed)
    assert value.data == b"x"
    assert value.sensor_name is None
    assert value.frame_id > 0


def test_a_nested_value_is_a_mapping_that_from_dict_turns_into_its_class():
    inner = BytesData(data=b"inner")
    outer = ImageData.deserialize(ImageData(detection_results=inner).serialize())
    assert Data.from_dict(outer.detection_results) == inner


def test_a_declared_nested_class_is_decoded_at_once():
    class Pair(Data):
        left: BytesData
        right: BytesData | None = None

    pair = Pair(left=BytesData(data=b"l"))
    assert Pair.deserialize(pair.serialize()) == pair


def test_datetimes_survive():
    event = Event(when=datetime(2026, 5, 15, 12, 0, 0, 250, tzinfo=UTC))
    assert Event.deserialize(event.serialize()) == event
    assert Event.from_dict(event.to_dict()) == event


def test_deserialize_on_a_class_accepts_only_that_class():
    payload = BytesData(data=b"x").serialize()
    assert isinstance(SensorData.deserialize(payload), BytesData)
    with pytest.raises(DecodeError, match="BytesData, not ImageData"):
        ImageData.deserialize(payload)
    with pytest.raises(DecodeError, match="BytesData, not ImageData"):
        ImageData.from_dict(BytesData(data=b"x").to_dict())


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"data_type": None},
        {"data_type": "os.system"},
        {"data_type": "msight_core.data.bytes.BytesData"},
        {"data_type": "msight_core.data.bytes.BytesData", "data": "text"},
        {"data_type": "msight_core.data.bytes.BytesData", "data": b"", "frame_id": "one"},
        ["data_type"],
        None,
    ],
)
def test_from_dict_refuses_what_is_no_data(plain):
    with pytest.raises(DecodeError):
        Data.from_dict(plain)


def test_repr_does_not_print_large_binary_fields():
    assert "data=<100000 bytes>" in repr(BytesData(data=bytes(100_000), sensor_name="cam"))
    assert "data=b'ab'" in repr(BytesData(data=b"ab"))


def test_a_field_without_messagepack_form_is_the_programmers_error():
    with pytest.raises(TypeError):
        ImageData(detection_results=object()).serialize()


def test_annotations_may_name_a_class_that_comes_later():
    assert Tree.deserialize(Tree(children=[Tree()]).serialize()) == Tree(children=[Tree()])


class Tree(Data):
    children: list[Tree] = msgspec.field(default_factory=list)


@given(st.recursive(st.just(Tree()), lambda inner: st.builds(Tree, children=st.lists(inner, max_size=3))))
def test_recursive_classes(tree):
    try:
        assert Tree.deserialize(tree.serialize(), max_nesting=6) == tree
    except BusError:
        assert _levels(tree) > 3  # a tree takes two levels, its map and its list


def _levels(tree):
    return 1 + max(map(_levels, tree.children), default=0)


def test_scalars_of_numpy_travel_as_pythons():
    class Scored(SensorData, tag="tests.data.Scored"):
        score: Any

    values = [np.float32(1.5), np.float64(2.5), np.int64(-3), np.bool_(True), np.str_("ne")]
    decoded = Data.deserialize(Scored(score=values).serialize()).score
    assert decoded == [1.5, 2.5, -3, True, "ne"]
    assert [type(value) for value in decoded] == [float, float, int, bool, str]
    assert Scored(score=np.float32(1.5)).to_dict()["score"] == 1.5


class Odd(SensorData):
    score: Any


class Outer(SensorData):
    inner: Odd


@pytest.mark.parametrize("value", [2**64, "\ud800", object(), np.zeros(3), [object()]])
def test_what_has_no_form_names_class_and_field(value):
    with pytest.raises(PayloadError, match=r"Odd\.score of type "):
        Odd(score=value).serialize()
    with pytest.raises(PayloadError, match=r"Outer\.inner: Odd\.score of type "):
        Outer(inner=Odd(score=value)).serialize()
