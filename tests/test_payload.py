"""What may be published, and what is refused before anything is handed to a connection."""

from __future__ import annotations

import array
import re
from enum import StrEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.data import BytesData
from msight_bus.errors import BusError, HeaderError, MessageTooLargeError, PayloadError
from msight_bus.payload import check_headers, check_key, to_bytes
from msight_bus.protocol.envelope import HEADER, pack_extension, unpack_extension
from msight_bus.settings import Limits
from tests.support.brokers import make_backend

LIMITS = Limits()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

# -- payloads


def test_bytes_are_taken_as_they_are():
    payload = b"payload"
    assert to_bytes(payload) is payload


def test_mutable_buffers_are_copied():
    buffer = bytearray(b"payload")
    taken = [to_bytes(buffer), to_bytes(memoryview(buffer)), to_bytes(memoryview(buffer)[3:])]
    buffer[:] = b"changed"
    assert taken == [b"payload", b"payload", b"load"]
    assert [type(payload) for payload in taken] == [bytes] * 3


@pytest.mark.parametrize(
    ("view", "payload"),
    [
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
        (memoryview(array.array("H", [1, 256])), array.array("H", [1, 256]).tobytes()),
        (memoryview(b""), b""),
    ],
    ids=["strided", "two dimensions", "items", "empty"],
)
def test_a_view_is_its_bytes(view, payload):
    assert to_bytes(view) == payload


def test_data_is_serialized():
    data = BytesData(data=b"x")
    assert to_bytes(data) == data.serialize()


@pytest.mark.parametrize(
    "buffer",
    [
        array.array("H", [1, 256]),
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        np.arange(6, dtype=np.uint16)[::2],
        np.array(5, dtype=np.float32),
        np.zeros((0, 3)),
        np.zeros(2, dtype=[("O", np.float32), ("x", np.uint8)]),
        np.bytes_(b"abc"),
    ],
    ids=["array", "two dimensions", "strided", "no dimension", "empty", "records", "bytes of NumPy"],
)
def test_a_bytes_like_object_is_its_bytes_in_c_order(buffer):
    taken = to_bytes(buffer)
    assert type(taken) is bytes
    assert taken == buffer.tobytes()


@pytest.mark.parametrize(
    "buffer", [np.array([None]), np.array(["2026-01-01"], dtype="datetime64[D]")], ids=["objects", "times"]
)
def test_an_array_that_has_no_bytes_is_refused_with_the_reason(buffer):
    with pytest.raises(PayloadError, match="The bytes of this ndarray cannot be read: .*dtype") as caught:
        to_bytes(buffer)
    assert caught.value.__cause__ is not None


def test_a_released_view_is_refused():
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(PayloadError, match="The bytes of this memoryview cannot be read: .*released"):
        to_bytes(view)


@pytest.mark.parametrize(
    "wrong",
    ["text", np.str_("text"), None, 5, 1.5, np.float32(1.5), np.int64(5), [1, 2], {"a": 1}, BytesData],
    ids=repr,
)
def test_anything_else_is_refused(wrong):
    with pytest.raises(PayloadError, match=rf"not {type(wrong).__name__}\. For example"):
        to_bytes(wrong)


# -- keys


@given(TEXT)
def test_a_key_is_text(key):
    assert check_key(key) == check_key(key.encode()) == key


def test_no_key_is_no_key():
    assert check_key(None) is None
    assert check_key("") == ""


@pytest.mark.parametrize("wrong", [b"\xff", "\ud800", "a\udfff"], ids=ascii)
def test_a_key_that_is_no_text_is_refused(wrong):
    with pytest.raises(HeaderError, match="A key must be "):
        check_key(wrong)


class Lane(StrEnum):
    NORTH = "north"


@pytest.mark.parametrize("text", [np.str_("north"), Lane.NORTH, np.bytes_(b"north")], ids=repr)
def test_a_key_that_is_more_than_a_str_becomes_one(text):
    key = check_key(text)
    assert (type(key), key) == (str, "north")


@pytest.mark.parametrize("wrong", [5, bytearray(b"a"), ["a"]], ids=repr)
def test_a_key_of_another_type_is_refused(wrong):
    with pytest.raises(HeaderError, match=f"A key must be a str or UTF-8 bytes, not {type(wrong).__name__}"):
        check_key(wrong)


# -- headers

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAMES = st.text(TOKEN, min_size=1, max_size=20).filter(lambda name: name.lower() != HEADER)
VALUES = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\t"), max_size=20)


def travels(value: str) -> bool:
    """Neither a control character nor white space at the ends."""
    return not any((c < " " and c != "\t") or c == "\x7f" for c in value) and value == value.strip()


@given(st.dictionaries(NAMES, VALUES.filter(travels), max_size=8))
def test_accepted_headers_are_carried_unchanged(headers):
    assert check_headers(headers, LIMITS) is headers
    assert unpack_extension(pack_extension("key", headers)) == ("key", headers)


@given(VALUES)
def test_a_value_travels_or_is_refused(value):
    try:
        check_headers({"name": value}, LIMITS)
    except HeaderError:
        assert not travels(value)
    else:
        assert travels(value)


@pytest.mark.parametrize("name", [chr(c) for c in range(256) if chr(c) not in TOKEN], ids=ascii)
def test_a_name_has_token_characters_only(name):
    for wrong in (name, f"a{name}", f"{name}a", f"a{name}b"):
        with pytest.raises(HeaderError, match="is not a valid header name"):
            check_headers({wrong: "value"}, LIMITS)


@pytest.mark.parametrize("name", ["", "ａ", "é", "a\n", "traceparent\r\nEvil: 1", 5, None, b"a"], ids=ascii)
def test_what_is_no_name(name):
    accepted = "ASCII letters" if isinstance(name, str) else f"a name must be a str, not {type(name).__name__}"
    with pytest.raises(HeaderError, match=f"is not a valid header name: {accepted}"):
        check_headers({name: "value"}, LIMITS)


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\n", "a\x00", "\x7f", " a", "a ", "\ta", "a\u3000", "\ud800"])
def test_a_value_that_cannot_travel_is_refused(value):
    with pytest.raises(HeaderError, match="of header 'name' is not valid"):
        check_headers({"name": value}, LIMITS)


@pytest.mark.parametrize("value", [5, None, b"value", ["a"]], ids=repr)
def test_a_value_is_text(value):
    with pytest.raises(HeaderError, match=rf"The value of header 'name' must be a str, not {type(value).__name__}"):
        check_headers({"name": value}, LIMITS)


@pytest.mark.parametrize("text", [np.str_("north"), Lane.NORTH], ids=repr)
def test_names_and_values_that_are_more_than_a_str_become_one(text):
    headers = check_headers({"a": "1", text: text}, LIMITS)
    assert headers == {"a": "1", "north": "north"}
    assert {type(part) for pair in headers.items() for part in pair} == {str}
    assert unpack_extension(pack_extension("key", headers)) == ("key", headers)


@pytest.mark.parametrize("wrong", [[("a", "b")], "a: b", {"a"}, 5, np.array([1, 2])], ids=repr)
async def test_headers_are_a_mapping(wrong):
    why = f"Headers must be a mapping of str to str, not {type(wrong).__name__}"
    async with make_backend("memory").connect() as bus, bus.publisher("a") as publisher:
        with pytest.raises(HeaderError, match=why):
            await bus.publish("a", b"", headers=wrong)
        with pytest.raises(HeaderError, match=why):
            await publisher.send(b"", headers=wrong)


@pytest.mark.parametrize("name", ["msight", "MSIGHT", "mSight"])
def test_the_bus_keeps_its_own_header(name):
    with pytest.raises(HeaderError, match="reserved"):
        check_headers({name: "value"}, LIMITS)
    assert check_headers({name + "-x": "value"}, LIMITS)


def test_a_wrong_name_is_shown_shortened():
    with pytest.raises(HeaderError) as caught:
        check_headers({"a b" * 100_000: "value"}, LIMITS)
    assert len(str(caught.value)) < 200


def test_as_many_headers_as_the_limit_and_no_more():
    limits = Limits(max_header_count=2)
    assert len(check_headers({"a": "1", "b": "2"}, limits)) == 2
    with pytest.raises(
        HeaderError, match=re.escape("Too many headers: 3; at most 2 are accepted (MSIGHT_MAX_HEADER_COUNT)")
    ):
        check_headers({"a": "1", "b": "2", "c": "3"}, limits)


def test_the_size_of_all_headers_is_bounded_in_bytes_as_they_travel():
    headers = {"ab": "é", "c": ""}
    size = len("ab: é\r\n".encode()) + len(b"c: \r\n")
    assert check_headers(headers, Limits(max_header_bytes=size)) is headers
    with pytest.raises(MessageTooLargeError, match="MSIGHT_MAX_HEADER_BYTES") as caught:
        check_headers(headers, Limits(max_header_bytes=size - 1))
    assert (caught.value.size, caught.value.limit) == (size, size - 1)


def test_the_errors_are_bus_errors_and_what_python_would_raise():
    assert set(PayloadError.__bases__) == {BusError, TypeError}
    assert set(HeaderError.__bases__) == {BusError, ValueError}
