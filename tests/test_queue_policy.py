from __future__ import annotations

import dataclasses

import pytest

from msight_bus.queue_policy import DEFAULT_BYTES, DEFAULT_MESSAGES, QueuePolicy
from msight_bus.settings import Limits

NAMED = ["block", "drop_oldest", "drop_newest", "latest"]


@pytest.mark.parametrize("name", NAMED)
def test_each_policy_is_built_by_its_name(name):
    assert getattr(QueuePolicy, name)(7, max_bytes=8) == QueuePolicy(name, 7, 8)


@pytest.mark.parametrize("name", NAMED)
def test_both_bounds_have_defaults(name):
    expected = 1 if name == "latest" else DEFAULT_MESSAGES
    assert getattr(QueuePolicy, name)() == QueuePolicy(name, expected, DEFAULT_BYTES)


def test_the_defaults_are_those_of_the_settings():
    assert (Limits().queue_messages, Limits().queue_bytes) == (DEFAULT_MESSAGES, DEFAULT_BYTES)


@pytest.mark.parametrize("bound", ["max_messages", "max_bytes"])
@pytest.mark.parametrize("wrong", [0, -1])
def test_a_queue_without_room_is_refused(bound, wrong):
    with pytest.raises(ValueError, match=f"{bound} must be at least 1, not {wrong}"):
        QueuePolicy("block", **{bound: wrong})


@pytest.mark.parametrize("bound", ["max_messages", "max_bytes"])
@pytest.mark.parametrize("wrong", [1.5, "10", None, True])
def test_a_bound_is_a_whole_number(bound, wrong):
    with pytest.raises(TypeError, match=f"{bound} must be an int, not {type(wrong).__name__}"):
        QueuePolicy("block", **{bound: wrong})


@pytest.mark.parametrize("wrong", ["lastest", "", None])
def test_the_policies_are_these_four(wrong):
    with pytest.raises(ValueError, match=f"when_full must be one of 'block', 'drop_oldest', .* not {wrong!r}"):
        QueuePolicy(wrong)


def test_one_is_enough():
    assert QueuePolicy("block", 1, 1).max_bytes == 1


def test_a_policy_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QueuePolicy.latest().max_messages = 5
