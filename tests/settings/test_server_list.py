from __future__ import annotations

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msight_bus.settings.server_list import MAX_ENTRIES, MAX_ENTRY_CHARACTERS, split_list

PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
ENTRIES = st.lists(st.text(PRINTABLE, min_size=1, max_size=30), min_size=1, max_size=10)
PLAIN = st.lists(st.text(st.sampled_from("abcXYZ019.-_:/@%"), min_size=1, max_size=30), min_size=1, max_size=10).filter(
    lambda entries: entries != [""]
)


@given(ENTRIES)
def test_a_python_style_list_comes_back(entries):
    assert split_list(repr(entries)) == entries


@given(ENTRIES)
def test_a_json_list_comes_back(entries):
    assert split_list(json.dumps(entries)) == entries


@given(PLAIN, st.sampled_from([",", ", ", " , "]))
def test_a_comma_separated_list_comes_back(entries, comma):
    assert split_list(f" {comma.join(entries)} ") == entries


@given(st.text() | st.text(st.sampled_from("[]'\"\\, ax(){}:")))
@example("[" * 60_000)
@example("['a'" * 10_000 + "]")
@example("'" * 60_000)
@example("['" + "\\" * 60_000 + "]")
@example("[__import__('os').abort()]")
@example("[] + ['a']")
@example("['a' 'b']")
@example("['a'; 'b']")
@example("['a', f'{1}']")
def test_anything_else_is_a_list_of_text_or_a_value_error(text):
    try:
        entries = split_list(text)
    except ValueError:
        return
    assert 0 < len(entries) <= MAX_ENTRIES
    assert all(isinstance(entry, str) and 0 < len(entry) <= MAX_ENTRY_CHARACTERS for entry in entries)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        "[ ]",
        ",",
        "a,,b",
        "a,",
        "['a'",
        "['a', '']",
        "['a',, 'b']",
        "[a, b]",
        "[a:9092, b:9092]",
        "['a' 'b']",
        "['a'] + ['b']",
        "['a', 1]",
        "['a', ['b']]",
        "['a\\x41']",
        '["\\u0041"]',
        "a" * (MAX_ENTRY_CHARACTERS + 1),
        ",".join(["a"] * (MAX_ENTRIES + 1)),
        "a" * 70_000,
        " " * 70_000 + "a",
    ],
)
def test_what_is_refused(text):
    with pytest.raises(ValueError, match=r"its? |entry "):
        split_list(text)


def test_the_bounds_themselves_are_allowed():
    assert len(split_list(",".join(["a"] * MAX_ENTRIES))) == MAX_ENTRIES
    assert split_list(str(["a" * MAX_ENTRY_CHARACTERS] * 2)) == ["a" * MAX_ENTRY_CHARACTERS] * 2


@pytest.mark.parametrize(
    "text", ["[::1]:7000, [::1]:7001", "[::1]", "[fe80::1],a", "[::ffff:10.0.0.1]:1,b", "['[::1]:7000', '[::1]:7001']"]
)
def test_a_list_may_begin_with_an_ipv6_address(text):
    assert split_list(text) == [entry.strip(" '") for entry in text.removeprefix("['").removesuffix("']").split(",")]


def test_quotes_and_trailing_commas_of_python():
    assert split_list("""['a', "b",]""") == ["a", "b"]
    assert split_list("""\n [ 'it\\'s' ,\n "x\\\\y" ]\n""") == ["it's", "x\\y"]


def test_nothing_is_evaluated():
    marker = "msight_bus_was_evaluated"
    for code in (
        f"[__import__('sys').modules.__setitem__({marker!r}, 1)]",
        f"__import__('sys').modules.__setitem__({marker!r}; 1)",
    ):
        with pytest.raises(ValueError, match="entry 1"):
            split_list(code) and split_list(f"[{code}]")
    assert marker not in sys.modules


@given(st.text())
def test_an_error_quotes_nothing(text):
    with pytest.raises(ValueError, match=r"its? |entry ") as caught:
        split_list(f"['SECRET', SECRET{text}")
    assert "SECRET" not in f"{caught.value!r}"
