"""Metadata goes through both forms unchanged, and whatever is not ours is a raw payload, never an error."""

from __future__ import annotations

import contextlib
import struct

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msight_bus.data import BytesData
from msight_bus.protocol import envelope

SEQUENCES = st.integers(1, 2**64 - 1) | st.sampled_from([1, 2**63, 2**64 - 1])
U64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HEADERS = st.dictionaries(TEXT, TEXT, max_size=4)
ANY_MSGPACK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=20,
)


def framed(payload: bytes, extension: bytes = b"", fields: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    return envelope.prefix(*fields, extension) + payload


def unframed(data: bytes) -> tuple[tuple[int, int, int], bytes, bytes] | None:
    """The numbers, the extension and the payload; ``None`` if it is raw."""
    length = envelope.prefix_length(data, 0, len(data))
    if not length:
        return None
    start = envelope.PREFIX_BYTES
    return envelope.unpack_meta(data[8:start]), data[start:length], data[length:]


# -- the native header


@given(U64, SEQUENCES, U64)
def test_the_header_carries_every_number(session, sequence, published_ns):
    value = f"{session:016x}{sequence:016x}{published_ns:016x}"
    expected = (session, sequence, published_ns * 1e-9)
    assert envelope.HEADER == "msight"
    assert envelope.parse_header(value) == envelope.parse_header(value.encode()) == expected


@given(st.binary(max_size=60) | st.text(max_size=60) | st.text("0123456789abcdef+-_x ", min_size=48, max_size=48))
def test_any_other_header_value_is_none_of_ours(value):
    digits = "0123456789abcdefABCDEF"
    ours = len(value) == 48 and all((chr(c) if isinstance(c, int) else c) in digits for c in value)
    ours = ours and int(value[16:32], 16) != 0
    assert (envelope.parse_header(value) is not None) == ours


@pytest.mark.parametrize("digit", ["+", "-", " ", "_", "x", "\n", "\x00", "g", "１", "é", "\ud800"])
@pytest.mark.parametrize("where", [0, 1, 5, 16, 32, 47])
def test_only_hexadecimal_digits_count(digit, where):
    value = "1" * where + digit + "1" * (47 - where)
    assert envelope.parse_header(value) is None
    if digit.isascii():
        assert envelope.parse_header(value.encode()) is None


@pytest.mark.parametrize("cut", [0, 1, 16, 47, 49, 96])
def test_a_header_has_48_digits(cut):
    assert envelope.parse_header(b"1" * cut) is None


@pytest.mark.parametrize("published", [0, 9])
@pytest.mark.parametrize("session", [0, 7])
def test_a_sequence_of_0_is_none_of_ours(session, published):
    assert envelope.parse_header(b"%016x%016x%016x" % (session, 0, published)) is None
    assert unframed(framed(b"payload", b"", (session, 0, published))) is None


# -- the prefix


@given(U64, SEQUENCES, U64, st.binary(max_size=40), st.binary(max_size=60))
def test_the_prefix_carries_every_number_and_leaves_the_payload(session, sequence, published_ns, extension, payload):
    numbers = (session, sequence, published_ns)
    assert unframed(framed(payload, extension, numbers)) == (numbers, extension, payload)


def test_the_prefix_is_laid_out_as_documented():
    data = envelope.prefix(0x1111, 0x2222, 0x3333, b"ext")
    assert data == b"\xc1MB\x01" + struct.pack(">IQQQ", 3, 0x1111, 0x2222, 0x3333) + b"ext"
    assert envelope.pack_prefix(envelope.MAGIC, 3, 0x1111, 0x2222, 0x3333) + b"ext" == data
    assert envelope.PREFIX_BYTES == 32


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_every_truncation_is_raw(extension, payload):
    data = framed(payload, extension)
    whole = envelope.PREFIX_BYTES + len(extension)
    for end in range(whole):
        assert unframed(data[:end]) is None
    assert unframed(data[:whole]) == ((1, 2, 3), extension, b"")


@given(st.binary(max_size=80) | st.binary(max_size=80).map(envelope.MAGIC.__add__))
@example(b"")
@example(b"\xc1")
def test_garbage_is_raw_or_lies_within_its_bounds(data):
    length = envelope.prefix_length(data, 0, len(data))
    if length:
        assert data.startswith(envelope.MAGIC)
        assert envelope.PREFIX_BYTES + int.from_bytes(data[4:8], "big") == length <= len(data)


@given(
    st.binary(max_size=40),
    st.binary(max_size=40) | st.builds(framed, st.binary(max_size=10), st.binary(max_size=10)),
    st.binary(max_size=40),
    st.integers(0, 10),
)
def test_a_message_within_a_chunk_is_judged_by_its_own_bytes(before, data, after, missing):
    data = data[: len(data) - missing]
    alone = envelope.prefix_length(data, 0, len(data))
    assert envelope.prefix_length(before + data + after, len(before), len(data)) == alone


@pytest.mark.parametrize("position", range(4))
def test_another_magic_or_version_is_raw(position):
    data = bytearray(framed(b"payload"))
    for value in range(256):
        data[position] = value
        assert (unframed(bytes(data)) is not None) == (value == envelope.MAGIC[position])


@pytest.mark.parametrize("claimed", [8, 2**31, 2**32 - 1])
def test_an_extension_longer_than_the_message_is_raw(claimed):
    data = struct.pack(">4sIQQQ", envelope.MAGIC, claimed, 1, 2, 3)
    assert unframed(data + b"payload") is None


@given(ANY_MSGPACK)
def test_messagepack_never_looks_framed(value):
    payload = msgpack.packb(value) + bytes(envelope.PREFIX_BYTES)
    assert payload[0] != envelope.MAGIC[0]
    assert unframed(payload) is None


def test_data_never_looks_framed_and_travels_framed():
    payload = BytesData(data=framed(b"inner")).serialize()
    assert unframed(payload) is None
    assert unframed(framed(payload)) == ((1, 2, 3), b"", payload)


# -- the extension


@given(st.none() | TEXT, HEADERS)
def test_key_and_headers_come_back(key, headers):
    packed = envelope.pack_extension(key, headers)
    assert packed == (msgpack.packb([key, headers]) if key is not None or headers else b"")
    if packed:
        assert envelope.unpack_extension(packed) == (key, headers)


def test_without_key_and_headers_there_is_no_extension():
    assert envelope.pack_extension(None, None) == envelope.pack_extension(None, {}) == b""
    assert envelope.unpack_extension(envelope.pack_extension("", None)) == ("", {})


@given(st.binary(max_size=60) | ANY_MSGPACK.map(msgpack.packb))
def test_extension_garbage_raises_nothing_but_value_error(data):
    with contextlib.suppress(ValueError):
        key, headers = envelope.unpack_extension(data)
        assert key is None or isinstance(key, str)
        assert all(isinstance(text, str) for pair in headers.items() for text in pair)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([None]),
        msgpack.packb([None, {}, 1]),
        msgpack.packb([None, None]),
        msgpack.packb([b"key", {}]),
        msgpack.packb(["key", {"name": 1}]),
        msgpack.packb(["key", {"name": b"value"}]),
        msgpack.packb(["key", {1: "value"}]),
        msgpack.packb(["key", {"name": "value"}]) + b"\x00",
        b"\x92\xa1\xff\x80",
        b"\x92\xc0\xdf\xff\xff\xff\xff",
        b"\x92\xdb\xff\xff\xff\xffa",
        b"\x91" * 100_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_extension(data):
    with pytest.raises(ValueError, match="extension"):
        envelope.unpack_extension(data)


def test_an_extension_that_would_take_much_more_memory_is_not_decoded():
    packed = envelope.pack_extension(None, {f"{number:x}": "" for number in range(200_000)})
    with pytest.raises(ValueError, match="extension"):
        envelope.unpack_extension(packed)


@given(st.none() | TEXT, HEADERS.filter(bool))
def test_every_truncated_extension_is_refused(key, headers):
    packed = envelope.pack_extension(key, headers)
    for end in range(len(packed)):
        with pytest.raises(ValueError, match="extension"):
            envelope.unpack_extension(packed[:end])
