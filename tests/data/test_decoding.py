from __future__ import annotations

import contextlib
import subprocess
import sys

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msight_bus.data import BytesData, Data, ImageData, decode, decoding, looks_like_data
from msight_bus.errors import ConfigError, DecodeError

BYTES = msgpack.packb("data_type") + msgpack.packb("msight_core.data.bytes.BytesData")
IMAGE = msgpack.packb("data_type") + msgpack.packb("msight_core.data.image.ImageData")


def image_with(field: str, value: bytes) -> bytes:
    return b"\x82" + IMAGE + msgpack.packb(field) + value


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


# Each claims or holds far more than it has bytes.
BOMBS = {
    "array": b"\xdd\xff\xff\xff\xff",
    "array of arrays": b"\xdd\xff\xff\xff\xff" * 30,
    "map": b"\xdf\xff\xff\xff\xff",
    "map with a key": b"\xdf\xff\xff\xff\xff\xa1a\x01",
    "string": b"\xdb\xff\xff\xff\xff",
    "binary": b"\xc6\xff\xff\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
    "nested arrays": nested(10_000),
    "nested maps": b"\x81\xa1a" * 10_000 + b"\xc0",
    "a million nested arrays": nested(1_000_000),
    "two million empty maps": b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x80" * 2_000_000,
    "two million empty arrays": b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x90" * 2_000_000,
    "maps with a key each": b"\xdd" + (700_000).to_bytes(4, "big") + b"\x81\x01\xc0" * 700_000,
}
PLACES = {
    "the payload": lambda bomb: bomb,
    "detection_results": lambda bomb: image_with("detection_results", bomb),
    "size": lambda bomb: image_with("size", bomb),
    "image": lambda bomb: image_with("image", bomb),
    "bytes": lambda bomb: b"\x82" + BYTES + b"\xa4data" + bomb,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb, place):
    with pytest.raises(DecodeError):
        decode(PLACES[place](BOMBS[bomb]))


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_in_a_field_that_the_class_does_not_have_takes_nothing(bomb):
    payload = b"\x83" + BYTES + b"\xa4data\xc4\x01x" + b"\xa3new" + BOMBS[bomb]
    with contextlib.suppress(DecodeError):
        assert decode(payload).data == b"x"
    with pytest.raises(DecodeError):
        decode(b"\x82" + IMAGE + b"\xa3new" + BOMBS[bomb])  # has a field of type Any


class Track(Data):
    box: tuple[float, ...]
    parts: list[dict[str, float]] = msgspec.field(default_factory=list)


TRACK = msgpack.packb("data_type") + msgpack.packb(f"{__name__}.Track")


@pytest.mark.parametrize("field", ["box", "parts"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_in_a_class_whose_fields_bound_the_nesting_are_refused(bomb, field):
    with pytest.raises(DecodeError):
        decode(b"\x82" + TRACK + msgpack.packb(field) + BOMBS[bomb])


def test_a_limit_below_what_the_class_nests_holds():
    payload = Track(box=(1.5,), parts=[{"a": 1.5}]).serialize()
    assert decode(payload, max_nesting=3).parts == [{"a": 1.5}]
    with pytest.raises(DecodeError, match="2 levels"):
        decode(payload, max_nesting=2)


def test_points_are_decoded_without_a_walk(monkeypatch):
    def walk(*_, **__):
        raise AssertionError("walked")

    monkeypatch.setattr(decoding, "check_bounds", walk)
    track = Track(box=(1.5,) * 1000, parts=[{"a": 1.5}] * 1000)
    assert decode(track.serialize()) == track


def refuse_all_bombs() -> int:
    """Run in a process of its own: how much its peak memory grows, in KiB."""
    import resource

    payloads = [place(bomb) for bomb in BOMBS.values() for place in PLACES.values()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for payload in payloads:
        with contextlib.suppress(DecodeError):
            decode(payload)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_refusing_bombs_takes_no_memory():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 * 1024  # two million empty maps would take 144 MB if they were built


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"text",
        b"\x80",
        b"\x81",
        b"\x81\xa9data_type",
        b"\x81\xa9data_type\xc0",
        b"\x81\xa9data_type\x01",
        b"\x81\xa9data_type\xd9",
        b"\x81\xa9data_type\xbf",
        b"\x81\xa9data_type\xa2os",
        b"\x81\xa9data_type\xa2\xff\xff",
        b"\x81\xa9data_type\xda\xff\xff",
        b"\x82\xa1a\x01\xa9data_type\xa2os",
        b"\x81" + BYTES,
        b"\x82" + BYTES,
        b"\x82" + BYTES + b"\xa4data\xa1x",
        b"\x82" + BYTES + b"\xa4data\xc0",
        b"\x82" + BYTES + b"\xa4data\xd4\x01\x01",
        b"\x83" + BYTES + b"\xa4data\xc4\x00\x01\x01",
        b"\x83" + BYTES + b"\xa4data\xc4\x00" + IMAGE,
        image_with("detection_results", b"\xd4\x01\x01"),
        image_with("detection_results", b"\xc7\x01\x05\x00"),
        image_with("detection_results", b"\xc7\x0c\x05" + bytes(12)),
        image_with("detection_results", b"\xc7"),
        image_with("detection_results", b"\xc1"),
        image_with("detection_results", b"\xa1\xff"),
        image_with("detection_results", b"\x81\x80\x01"),
        image_with("sensor_name", b"\xa1\xff"),
        image_with("is_encoded", b"\x01"),
        image_with("size", b"\x93\x01\x02\xa1c"),
        image_with("frame_id", b"\xcb\x3f\xf8" + bytes(6)),
    ],
)
def test_damaged_payloads_are_refused(payload):
    with pytest.raises(DecodeError):
        decode(payload)


@given(st.binary())
@example(b"\x81\xa9data_type")
def test_any_bytes_decode_or_are_refused(payload):
    with pytest.raises(DecodeError):
        decode(payload)


@given(st.data())
def test_damaged_data_decodes_or_is_refused(draw):
    payload = bytearray(
        ImageData(image=b"abc", detection_results={"a": [1, {"b": 2.5}]}, size=(1, 2, 3), sensor_name="ü").serialize()
    )
    for _ in range(draw.draw(st.integers(1, 4))):
        payload[draw.draw(st.integers(0, len(payload) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut]), bytes(payload) + bytes(payload[:cut])):
        try:
            assert isinstance(decode(damaged), Data)
        except DecodeError:
            continue


@pytest.mark.parametrize("kind", [BytesData(data=b"x" * 100), ImageData(image=b"x" * 100, size=(1, 2, 3))])
def test_every_truncation_and_any_trailing_byte_is_refused(kind):
    payload = kind.serialize()
    for length in range(len(payload)):
        with pytest.raises(DecodeError):
            decode(payload[:length])
    with pytest.raises(DecodeError):
        decode(payload + b"\xc0")


def test_the_payload_itself_is_bounded():
    payload = BytesData(data=bytes(1000)).serialize()
    assert decode(payload, max_bytes=len(payload)) == decode(payload)
    with pytest.raises(DecodeError, match="at most 1000"):
        decode(payload, max_bytes=1000)


def test_nesting_is_bounded_where_the_limit_says():
    value = image_with("detection_results", nested(31))
    assert decode(value).detection_results is not None
    with pytest.raises(DecodeError, match="32 levels"):
        decode(image_with("detection_results", nested(32)))
    with pytest.raises(DecodeError, match="5 levels"):
        decode(value, max_nesting=5)


def test_an_unknown_tag_is_named_and_nothing_is_imported():
    payload = b"\x81" + msgpack.packb("data_type") + msgpack.packb("antigravity.Thing")
    with pytest.raises(DecodeError, match=r"'antigravity\.Thing'.*import the module that defines it"):
        decode(payload)
    assert "antigravity" not in sys.modules


def test_the_decoders_own_error_is_the_cause():
    with pytest.raises(DecodeError) as caught:
        decode(b"\x82" + BYTES + b"\xa4data\xa1x")
    assert "bytes" in str(caught.value.__cause__)


def test_bytearray_and_memoryview_decode_too():
    for value in (BytesData(data=b"x"), ImageData(image=b"x", size=(1, 2, 3))):
        payload = value.serialize()
        assert decode(bytearray(payload)) == decode(memoryview(payload)) == value


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (BytesData(data=b"x").serialize(), True),
        (msgpack.packb({"data_type": "unknown"}), True),
        (msgpack.packb({"data_type": "x", **{str(i): i for i in range(20)}}), True),
        (msgpack.packb({"data_type": "x", **{str(i): i for i in range(70_000)}}), True),
        (msgpack.packb({"other": 1, "data_type": "x"}), False),
        (msgpack.packb({"data_typo": "x"}), False),
        (msgpack.packb(["data_type", "x"]), False),
        (b"\x80\xa9data_type", False),
        (b"\xff\xd8\xff\xe0 a jpeg", False),
        (b"", False),
        (b"\xde", False),
        (b"\xdf\x00", False),
        (b"a text about \xa9data_type", False),
    ],
)
def test_looks_like_data(payload, expected):
    assert looks_like_data(payload) is expected


if __name__ == "__main__":
    print(refuse_all_bombs())  # noqa: T201


def test_whatever_a_class_raises_while_it_is_made_is_a_decode_error():
    class Asserting(Data, tag="tests.data.Asserting"):
        value: int

        def __post_init__(self):
            assert self.value > 0

    payload = msgpack.packb({"data_type": "tests.data.Asserting", "value": -1})
    with pytest.raises(DecodeError, match="AssertionError") as caught:
        decode(payload)
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(DecodeError):
        Data.from_dict({"data_type": "tests.data.Asserting", "value": -1})


class Unresolved(Data):
    good: int = 0
    bad: list[NotDefinedAnywhere] = msgspec.field(default_factory=list)  # noqa: F821


class Foreign(Data):
    camera: Track | None = None
    handle: contextlib.suppress | None = None


class Ambiguous(Data):
    either: contextlib.suppress | msgpack.Packer | None = None


class Holder(Data):
    inner: list[Foreign] = msgspec.field(default_factory=list)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Unresolved, "Unresolved.bad"),
        (Foreign, "Foreign.handle"),
        (Ambiguous, "Ambiguous.either"),
        (Holder, "Foreign.handle"),
    ],
)
def test_a_class_that_no_reader_can_decode_is_an_error_at_the_writer(kind, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        kind().serialize()
    payload = b"\x81" + msgpack.packb("data_type") + msgpack.packb(f"{__name__}.{kind.__name__}")
    with pytest.raises(DecodeError, match=f"^{field}: "):
        decode(payload)
