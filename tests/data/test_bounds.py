from __future__ import annotations

import contextlib
import json
import math
import tracemalloc
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.data import Data, bounds
from msight_bus.data.bounds import Layout, check_bounds, check_json
from msight_bus.errors import DecodeError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=3) | st.integers(-(2**31), 2**31), inner, max_size=20)
    ),
    max_leaves=60,
)


def depth(value) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(PLAIN)
def test_the_walk_measures_depth_exactly(value):
    payload = msgpack.packb(value)
    levels = depth(value)
    check_bounds(payload, max_bytes=1 << 30, max_nesting=levels)
    if levels:
        with pytest.raises(DecodeError, match="deep"):
            check_bounds(payload, max_bytes=1 << 30, max_nesting=levels - 1)


@given(st.binary(max_size=64))
def test_any_bytes_are_walked_to_an_end(payload):
    with contextlib.suppress(DecodeError):
        assert check_bounds(payload, max_bytes=1 << 16, max_nesting=8) is None


@pytest.mark.parametrize(
    "value",
    [
        [None] * 20_000,
        [1.5] * 20_000,
        list(range(10**6, 10**6 + 20_000)),
        [{}] * 20_000,
        [[]] * 20_000,
        [[[]]] * 20_000,
        [{"a": None}] * 20_000,
        [{1: None}] * 20_000,
        [{f"k{i}": i for i in range(6)}] * 5_000,
        {f"key{i}": None for i in range(20_000)},
        ["ab"] * 20_000,
        ["a" * 200] * 20_000,
        [b"ab"] * 20_000,
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_estimate_is_near_what_decoding_takes(value):
    """A bound of half the memory that decoding really takes is noticed; ten times that is enough."""
    payload = msgspec.msgpack.encode(value)
    tracemalloc.start()
    try:
        kept = msgspec.msgpack.decode(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept == value
    with pytest.raises(DecodeError, match="when decoded"):
        check_bounds(payload, max_bytes=peak // 2, max_nesting=32)
    check_bounds(payload, max_bytes=peak * 10, max_nesting=32)


def test_large_binary_content_is_stepped_over():
    payload = msgpack.packb({"image": bytes(10_000_000)})
    check_bounds(payload, max_bytes=10_001_000, max_nesting=1)
    with pytest.raises(DecodeError, match="when decoded"):
        check_bounds(payload, max_bytes=9_999_999, max_nesting=1)


@pytest.mark.parametrize(
    ("value", "memory"),
    [(1.5, 32), (b"a" * 100, 64 + 100), ("a", 64), ([None] * 10, 80 + 10 * 9), ({1: None}, 80 + 104)],
    ids=repr,
)
def test_what_takes_exactly_the_bound_is_permitted(value, memory):
    payload = msgpack.packb(value)
    check_bounds(payload, max_bytes=memory, max_nesting=1)
    with pytest.raises(DecodeError, match=f"more than {memory - 1} bytes"):
        check_bounds(payload, max_bytes=memory - 1, max_nesting=1)


@pytest.mark.parametrize("seconds", [1, 2**33, 2**40])
def test_timestamps_are_the_one_extension_that_passes(seconds):
    stamp = msgpack.Timestamp(seconds, 5 if seconds > 1 else 0)
    check_bounds(msgpack.packb([stamp, 1]), max_bytes=1000, max_nesting=1)
    for size in (1, 2, 4, 8, 12, 16, 300, 70_000):
        with pytest.raises(DecodeError, match="extension"):
            check_bounds(msgpack.packb([msgpack.ExtType(5, bytes(size))]), max_bytes=10**6, max_nesting=1)


def test_the_walk_of_a_bomb_ends_at_the_budget_not_at_the_end():
    """What an array claims is over the budget before its first entry is looked at, which is an extension."""
    payload = b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\xd4\x05\x00" * 2_000_000
    with pytest.raises(DecodeError, match="when decoded"):
        check_bounds(payload, max_bytes=10_000_000, max_nesting=32)
    with pytest.raises(DecodeError, match="extension"):
        check_bounds(payload, max_bytes=100_000_000, max_nesting=32)


# -- entries that are alike

FLAT = (
    st.lists(st.floats(), max_size=4)
    | st.dictionaries(st.sampled_from("abc"), st.floats() | st.none())
    | st.integers(-40, 2**20)
    | st.booleans()
    | st.just({"box": [[1.5], {"a": 2}], "id": "ab"})
    | st.just([[[[]]]])
)


def outcome(payload, **limits):
    try:
        return check_bounds(payload, **limits)
    except DecodeError as error:
        return str(error)


@given(
    st.lists(st.tuples(FLAT, st.integers(1, 60)), max_size=4),
    st.integers(0, 40_000),
    st.integers(1, 4),
    st.binary(max_size=3),
)
def test_skipping_entries_that_are_alike_changes_no_outcome(runs, max_bytes, max_nesting, end):
    values = [value for value, count in runs for _ in range(count)]
    payload = msgpack.packb([values, {"a": values}]) + end
    limits = {"max_bytes": max_bytes, "max_nesting": max_nesting}
    with mock.patch.object(bounds, "_MANY", math.inf):
        expected = outcome(payload, **limits)
    assert outcome(payload, **limits) == expected


def test_entries_that_are_alike_count_their_nesting():
    payload = msgpack.packb([[[[[]]]] * 100])
    check_bounds(payload, max_bytes=10**6, max_nesting=5)
    with pytest.raises(DecodeError, match="4 levels"):
        check_bounds(payload, max_bytes=10**6, max_nesting=4)


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_alike_entries_may_be_truncated(cut):
    payload = msgpack.packb([[1.5, 2.5]] * 100)
    assert outcome(payload[: len(payload) - cut], max_bytes=10**6, max_nesting=2) is None


# -- what a type tells


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Tree(msgspec.Struct):
    children: list[Tree]


@dataclass
class Made:
    names: list[str] = field(default_factory=list)


class Typed(Data):
    points: list[Point]
    when: float | None = None


@pytest.mark.parametrize(
    ("kind", "nesting"),
    [
        (int, 0),
        (Point, 1),
        (list[Point], 2),
        (Typed, 3),
        (Made, 2),
        (dict[str, tuple[int, ...]], 2),
        (tuple[int, list[float] | None], 2),
        (set[int], 1),
        (Any, math.inf),
        (object, math.inf),
        (dict[str, Any], math.inf),
        (Tree, math.inf),
        (list[Tree | None], math.inf),
    ],
    ids=str,
)
def test_the_nesting_that_a_type_permits(kind, nesting):
    assert Layout(kind).nesting == nesting


def test_a_class_with_defaults_that_are_made_costs_more():
    assert Layout(list[Made]).container > Layout(list[Point]).container > Layout(list[list[int]]).container
    assert Layout(list[Made]).container == 80 + 64


def test_a_type_bounds_what_its_payloads_can_take():
    layout = Layout(list[list[float]])
    assert layout.is_within(1000, max_bytes=92_000, max_nesting=2)
    assert not layout.is_within(1001, max_bytes=92_000, max_nesting=2)
    assert not layout.is_within(10, max_bytes=92_000, max_nesting=1)
    assert not Layout(list[Any]).is_within(10, max_bytes=92_000, max_nesting=32)
    assert Layout(Point).is_within(10**9, max_bytes=92_000, max_nesting=1)  # has no containers inside


@pytest.mark.parametrize(
    "value", [[{}] * 5000, [[]] * 5000, [[[]]] * 3000, {1: {}}, [{1: {}}] * 3000], ids=lambda v: str(v)[:9]
)
def test_no_payload_takes_more_for_a_byte_than_a_type_bounds(value):
    payload = msgspec.msgpack.encode(value)
    most = len(payload) * 92
    check_bounds(payload, max_bytes=most, max_nesting=3)


# -- JSON

TEXT = st.text(max_size=5) | st.sampled_from(['"', "\\", '[[{"', "]", '\\\\"'])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=60,
)
ANY = Layout(dict[str, Any])


@given(JSON, st.booleans())
def test_the_nesting_of_json_is_measured_exactly(value, ascii_only):
    payload = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    levels = depth(value)
    check_json(payload, ANY, max_bytes=1 << 30, max_nesting=levels)
    if levels:
        with pytest.raises(DecodeError, match="deep"):
            check_json(payload, ANY, max_bytes=1 << 30, max_nesting=levels - 1)


@pytest.mark.parametrize(
    "text", [b'"' + b'\\"' * 200_000, b'"' + b"\\" * 400_001, b'"' * 400_001], ids=["quotes", "backslashes", "empty"]
)
def test_a_string_without_an_end_takes_linear_time_and_little_memory(text):
    payload = b"[" * 40 + text
    tracemalloc.start()
    try:
        check_json(
            payload, ANY, max_bytes=1 << 30, max_nesting=32
        )  # quadratic time would exceed the deadline of the test
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(payload)


@given(st.binary(max_size=64))
def test_any_bytes_are_checked_as_json(payload):
    with contextlib.suppress(DecodeError):
        assert check_json(payload, ANY, max_bytes=1 << 12, max_nesting=4) is None


@pytest.mark.parametrize(
    "value",
    [
        [None] * 20_000,
        [1.5] * 20_000,
        [{}] * 20_000,
        [[]] * 20_000,
        [{"a": None}] * 20_000,
        {f"key{i}": None for i in range(20_000)},
        ["ab"] * 20_000,
        ["\U0001f600" + "a" * 200] * 20_000,
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_estimate_of_json_is_near_what_decoding_takes(value):
    payload = msgspec.json.encode(value)
    tracemalloc.start()
    try:
        kept = msgspec.json.decode(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept == value
    with pytest.raises(DecodeError, match="when decoded"):
        check_json(payload, ANY, max_bytes=peak // 2, max_nesting=32)
    check_json(payload, ANY, max_bytes=peak * 20, max_nesting=32)
