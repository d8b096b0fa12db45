"""Patterns: what they match, and which of two covers the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus import TopicError
from msight_bus.patterns import MAX_PATTERNS, TopicPattern, check_entries, is_pattern
from msight_bus.protocol.redis import glob_of

PARTS = st.sampled_from(["a", "b", "ne", "a-b", "_x", "dead"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@st.composite
def patterns(draw):
    parts = draw(st.lists(PARTS | st.just("*"), max_size=4))
    parts += draw(st.sampled_from([["*"], [">"], []])) or ([] if "*" in parts else ["*"])
    return ".".join(parts)


def matches_by_parts(pattern, name):
    """The definition, part by part."""
    if name.startswith("_") or name.endswith(".dead"):
        return False
    parts, names = pattern.split("."), name.split(".")
    if parts[-1] == ">":
        return len(names) >= len(parts) and matches_each(parts[:-1], names)
    return len(names) == len(parts) and matches_each(parts, names)


def matches_each(parts, names):
    return all(part in ("*", name) for part, name in zip(parts, names, strict=False))


@given(patterns(), NAMES)
def test_a_pattern_matches_by_parts(pattern, name):
    assert TopicPattern(pattern, ".dead").matches(name) == matches_by_parts(pattern, name)


@given(patterns(), patterns(), NAMES)
def test_a_pattern_that_covers_another_matches_what_that_matches(wide, narrow, name):
    wide, narrow = TopicPattern(wide, ".dead"), TopicPattern(narrow, ".dead")
    if wide.covers(narrow.text):
        assert wide.matches(name) or not narrow.matches(name)


@given(patterns(), NAMES)
def test_a_pattern_covers_itself_and_the_topics_that_it_matches(pattern, name):
    assert TopicPattern(pattern, ".dead").covers(pattern)
    assert TopicPattern(pattern, ".dead").covers(name) == TopicPattern(pattern, ".dead").matches(name)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("a.>", "a.*", True),
        ("a.>", "a.b.>", True),
        ("a.>", "a.*.c", True),
        (">", "*", True),
        ("*.b", "a.b", True),
        ("a.*", "a.>", False),
        ("*", ">", False),
        ("a.*", "*.b", False),
        ("a.>", "a", False),
        ("*.*", "*.>", False),
    ],
)
def test_which_pattern_covers_which(wide, narrow, covers):
    assert TopicPattern(wide, ".dead").covers(narrow) == covers


@given(patterns(), NAMES)
def test_the_glob_of_redis_matches_at_least_as_much(pattern, name):
    if TopicPattern(pattern, ".dead").matches(name):
        assert globs(glob_of(pattern).decode(), name)


def globs(glob, name):
    """Whether a glob-style pattern without other special characters than ``*`` matches a name."""
    if not glob:
        return not name
    if glob[0] == "*":
        return any(globs(glob[1:], name[at:]) for at in range(len(name) + 1))
    return name[:1] == glob[0] and globs(glob[1:], name[1:])


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a\nb", "\udcff"])
def test_a_name_need_not_be_a_topic(name):
    assert TopicPattern(">", ".dead").matches(name) == bool(name)
    assert not TopicPattern("a.*", ".dead").matches(name)


def test_entries_keep_their_order():
    assert check_entries(["b", "a.*", "a"]) == ("b", "a.*", "a")
    assert check_entries(("b",)) == check_entries("b") == ("b",)
    assert [is_pattern(entry) for entry in ("a", "a.*", ">")] == [False, True, True]


def test_there_are_at_most_so_many_patterns_but_any_number_of_topics():
    assert len(check_entries([f"a.t{i}" for i in range(100_000)])) == 100_000
    assert len(check_entries([f"a{i}.*" for i in range(MAX_PATTERNS)])) == MAX_PATTERNS
    with pytest.raises(TopicError, match="1,001 patterns; at most 1,000 are accepted"):
        check_entries([f"a{i}.*" for i in range(MAX_PATTERNS + 1)])
