"""Errors travel: out of a process pool, into a queue, through copy."""

from __future__ import annotations

import copy
import pickle

import pytest

from msight_bus import errors
from msight_bus.errors import (
    BusError,
    CapabilityWarning,
    ConfigError,
    DrainTimeoutError,
    MessageTooLargeError,
    TopicError,
    counted,
    quoted,
)

FIELDS = {
    ConfigError: {"problems": ("MSIGHT_A is wrong.", "MSIGHT_B is wrong.")},
    TopicError: {"topic": "a b"},
    MessageTooLargeError: {"size": 2, "limit": 1},
    DrainTimeoutError: {"left": {"subscription a.b": 3}},
}
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BusError | Warning)]
WAYS = [copy.copy, copy.deepcopy]
WAYS += [lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)]


def made(kind):
    if kind is ConfigError:
        return ConfigError(list(FIELDS[kind]["problems"]))
    return kind("What failed.", **FIELDS.get(kind, {}))


def test_every_error_of_the_module_is_tried():
    assert {BusError, CapabilityWarning, MessageTooLargeError, DrainTimeoutError} <= set(KINDS)


@pytest.mark.parametrize("way", WAYS, ids=["copy", "deepcopy", *(f"pickle {protocol}" for protocol in range(6))])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_type_text_fields_and_notes(kind, way):
    error = made(kind)
    error.add_note("while draining")
    again = way(error)
    assert type(again) is kind
    assert (str(again), again.args) == (str(error), error.args)
    assert {name: getattr(again, name) for name in FIELDS.get(kind, {})} == FIELDS.get(kind, {})
    assert again.__notes__ == ["while draining"]


def test_a_users_own_error_with_fields_of_its_own_travels_too():
    again = pickle.loads(pickle.dumps(StaleError("late", age=3.0)))
    assert (str(again), again.age) == ("late", 3.0)


class StaleError(BusError):
    """What a user may derive."""

    def __init__(self, message, *, age):
        super().__init__(message)
        self.age = age


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("WRONGPASS no such user ü", "WRONGPASS no such user ü"),
        (b"bytes \xff", "bytes \ufffd"),
        ("\x1b[2Ja\r\nb\t\x00\x7f\x9b", "\\x1b[2Ja\\r\\nb\\t\\x00\\x7f\\x9b"),
        ("\u202ea\u2028\ud800", "\\u202ea\\u2028\\ud800"),
        (6379, "6379"),
        ("", ""),
    ],
)
def test_what_a_peer_said_is_printable_on_one_line(said, shown):
    assert quoted(said) == shown
    assert quoted(said).isprintable()


@pytest.mark.parametrize("said", ["a" * 10_000, "\x1b" * 10_000, b"\xff" * 10_000])
def test_what_a_peer_said_is_bounded(said):
    assert len(quoted(said)) == 300
    assert len(quoted(said, 20)) == 20
    assert quoted(said, 20).endswith("...")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 messages"), (1, "1 message"), (2, "2 messages"), (1000, "1,000 messages")]
)
def test_a_count_agrees_with_its_noun(count, text):
    assert counted(count, "message") == text
