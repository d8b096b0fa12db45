"""Payloads as text and JSON: decoded, shortened and harmless, whatever another program sends."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.cli.payload_text import as_json, as_text, decoded, matches
from msight_bus.data import BytesData, ImageData
from msight_bus.message import Message
from msight_bus.settings import Limits

SEGMENTS = "ff d8 " + " ".join(["ff e0 00 02"] * 7) + " ff e0"
JPEG = b"\xff\xd8\xff\xc0\x00\x11\x08\x04\x38\x07\x80" + bytes(50_000)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big")
LIMITS = Limits()


def text_of(payload, most=400):
    return as_text(decoded(Message("t", payload), LIMITS), most)


def packed(**fields):
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b"", ""),
        (b"hello", "hello"),
        ("Grüße\n".encode(), r"Grüße\n"),
        (b"plain \x1b[31mred\x1b[0m text", r"plain \x1b[31mred\x1b[0m text"),
        ("a\u202eb, long enough".encode(), r"a\u202eb, long enough"),
        (b'{"a": [1, 2.5, null, true], "b": "x"}', "{a: [1, 2.5, None, True], b: 'x'}"),
        (b"{no json", "{no json"),
        (packed(data_type="my.lidar.Track", speed=3.25, name="n"), "Track(speed=3.25, name='n')"),
        (packed(data_type="a\x1b[2J", x=1), r"a\x1b[2J(x=1)"),
        (packed(**{"\x1b]0;title\x07": "\x9b2J"}), r"{\x1b]0;title\x07: '\x9b2J'}"),
        (packed(points=[[1.0, 2.0, 3.0]] * 20_000), "{points: <20,000 x 3 values>}"),
        (packed(ranges=list(range(100))), f"{{ranges: [{', '.join(map(str, range(16)))}, … 84 more]}}"),
        (bytes([0xC1, 0xFF, 0]), "c1 ff 00"),
        (JPEG, "JPEG 1920x1080, 50,011 B"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000 + JPEG[2:20], f"{SEGMENTS} … 400,020 B"),  # a size behind them
        (PNG, "PNG 640x480, 24 B"),
        (packed(raw=bytes(1000)), "{raw: <1,000 B>}"),
        (b"\xff" * 1000, "ff " * 32 + "… 1,000 B"),
    ],
)
def test_what_is_shown(payload, shown):
    assert text_of(payload) == shown


def test_an_image_is_shown_as_size_and_shape():
    text = text_of(ImageData(image=JPEG, size=(1080, 1920, 3), sensor_name="ne").serialize())
    assert text.startswith("ImageData(image=<JPEG 1920x1080, 50,011 B>, is_encoded=True")
    assert "size=[1080, 1920, 3], sensor_name='ne'" in text
    raw = ImageData(image=bytes(12), is_encoded=False, size=(2, 2, 3)).serialize()
    assert "size=[2, 2, 3]" in text_of(raw)


def test_a_long_value_is_shortened_between_its_numbers():
    text = text_of(packed(**{f"number_{number}": 1234567890 + number for number in range(200)}), most=100)
    fields = text.strip("{}").split(", ")
    assert fields[:-1] == [f"number_{number}: {1234567890 + number}" for number in range(len(fields) - 1)]
    assert fields[-1] == f"… {200 - len(fields) + 1} more"
    assert len(text) < 150


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * 10_000,
        b"[" * 10_000,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff" * 100,
        b"\x81\x91\x01\x01",  # a list as a key
        b"\x81\xc4\x01a\x01",  # bytes as a key
        b"\x82\xa9data_type\x05\xa1a\xcb\x7f\xf8\0\0\0\0\0\0",  # a tag that is no text; NaN
        b"\x81\xa1a\xc7\x05\x63abcde",  # an extension
        b"\xd8\x00" * 50,  # half of a surrogate pair
        b'{"a": "\\ud800"}',
        b'{"a": 1e999}',
        "ü".encode() * 40_000 + b"x",
    ],
)
def test_a_hostile_payload_is_text_and_json(payload):
    value = decoded(Message("t", payload), LIMITS)
    assert len(as_text(value, 400)) < 2000
    json.loads(json.dumps(as_json(value), allow_nan=False))


VALUES = st.recursive(
    st.none() | st.integers(-5, 5) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary(max_size=300) | VALUES.map(msgspec.msgpack.encode))
def test_any_payload_is_one_printable_line(payload):
    message = Message("t", payload)
    value = decoded(message, LIMITS)
    assert as_text(value, 200).isprintable()
    line = json.dumps(as_json(value), allow_nan=False)
    assert line.isascii()
    assert line.isprintable()
    matches(message, value, "x=1")
    matches(message, value, "x")


def test_the_text_of_a_large_payload_is_bounded():
    assert len(as_text(decoded(Message("t", b"x" * 10_000_000), LIMITS), 10**9)) <= 64 * 1024


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("sensor_name=ne", True),
        ("sensor_name=n", False),
        ("nested.speed=3", True),
        ("nested.speed=3.0", True),
        ("nested.speed=x", False),
        ("valid=true", True),
        ("lens=wide", True),
        ("key=k1", True),
        ("key=k2", False),
        ("missing.name=1", False),
        ("SENSOR", True),
        ("wide", True),
        ("cam.one", True),
        ("nowhere", False),
        ("__class__.x=1", False),
    ],
)
def test_a_filter(wanted, found):
    value = {"sensor_name": "ne", "nested": {"speed": 3}, "valid": True}
    message = Message("cam.one", b"", headers={"lens": "wide"}, key="k1")
    assert matches(message, value, wanted) is found


def test_values_for_programs():
    payload = BytesData(data=bytes(100), sensor_name="ne", capture_timestamp=1.5).serialize()
    fields = as_json(decoded(Message("t", payload), LIMITS))
    assert (fields["data_type"], fields["data"], fields["capture_timestamp"]) == (
        "msight_core.data.bytes.BytesData",
        base64.b64encode(bytes(100)).decode(),
        1.5,
    )
