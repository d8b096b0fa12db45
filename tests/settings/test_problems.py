from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.settings.kinds import Kind, whole
from msight_bus.settings.problems import describe

NUMBER = whole(1, 9, "4")


def test_a_sentence_names_what_is_accepted_an_example_and_the_value():
    assert describe("X", NUMBER, "", "ten") == "X must be a whole number from 1 to 9, such as X=4; it is 'ten'."
    assert describe("X", NUMBER, "it is late", None) == "X must be a whole number from 1 to 9, such as X=4; it is late."


@given(st.text())
def test_a_sentence_stays_short_and_on_one_line(value):
    sentence = describe("X", NUMBER, "", value)
    assert len(sentence) < 140
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "value",
    [
        "redis://:CANARY@host",
        "user:CANARY@host",
        "https://CANARY",
        "-----BEGIN PRIVATE KEY----- CANARY",
        "two\nlines CANARY",
        ["CANARY"],
        b"CANARY",
        {"CANARY": 1},
    ],
)
def test_what_may_be_a_secret_in_the_wrong_place_is_not_shown(value):
    assert "CANARY" not in describe("X", NUMBER, "", value)


def test_a_kind_that_is_not_shown_is_not_shown():
    assert "CANARY" not in describe("X", Kind("a text", "...", str, shown=False), "", "CANARY")
