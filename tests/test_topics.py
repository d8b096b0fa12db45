"""The grammar of topics and groups, and what tries to get around it."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.errors import BusError, TopicError
from msight_bus.topics import MAX_TOPIC_BYTES, NODES_TOPIC, SEQUENCE_TOPIC, check_group, check_topic

ALLOWED = string.ascii_letters + string.digits + "_-"
PARTS = st.text(ALLOWED, min_size=1, max_size=20)
GROUPS = st.lists(PARTS, min_size=1, max_size=6).map(".".join).filter(lambda group: group[0] != "_")
TOPICS = GROUPS.flatmap(
    lambda group: st.lists(st.sampled_from("./"), min_size=(many := group.count(".")), max_size=many).map(
        lambda dots: "".join(part + dot for part, dot in zip(group.split("."), [*dots, ""], strict=True))
    )
)

GOOD = ["a", "0", "-", "a_", "intersection.cam_ne", "A-b.C_d.9", "a._hidden", "x" * MAX_TOPIC_BYTES]
SLASHED = ["a/b", "camera/ne/front", "a.b/c.d", "a/_hidden", "a/-"]
EMPTY_PARTS = [".", "..", ".a", "a.", "a..b", "a.b.", "/", "//", "/a", "a/", "a//b", "a./b", "a/.b", "a/b."]
RESERVED = ["_", "_msight", "_a.b", NODES_TOPIC, SEQUENCE_TOPIC]
WILDCARDS = ["*", ">", "a.*", "a.>", "a?", "[ab]", "news.*"]
INJECTIONS = [
    "a 1",
    "a\r\nPUB b 1\r\nx",
    "a\n",
    "a\r\n",
    "a\r",
    "\na",
    "a\tb",
    "a\x00",
    "\x00",
    "a/b c",
    "a:b",
    "a$b",
    "{a}",
    "a\\b",
    'a"b',
    "a'b",
    "a,b",
    " a",
    "a ",
    "a\x7f",
    "a\x85",
    "a\u2028b",
]
LOOK_ALIKES = ["саm", "camé", "ａ", "a․b", "a．b", "٣", "²", "ﬁ", "a\u200b", "Ⅷ", "🚦", "\ud800"]


@pytest.mark.parametrize("topic", GOOD)
def test_accepted(topic):
    assert check_topic(topic) is topic
    assert check_topic(topic) is topic  # remembered
    assert check_group(topic) is topic


@pytest.mark.parametrize("topic", SLASHED)
def test_a_slash_separates_parts_of_a_topic_and_not_of_a_group(topic):
    assert check_topic(topic) is topic
    with pytest.raises(TopicError, match="is not a valid group name"):
        check_group(topic)


@pytest.mark.parametrize("topic", ["", *EMPTY_PARTS, *RESERVED, *WILDCARDS, *INJECTIONS, *LOOK_ALIKES])
@pytest.mark.parametrize("check", [check_topic, check_group])
def test_refused_every_time(check, topic):
    for _ in range(2):
        with pytest.raises(TopicError) as caught:
            check(topic)
        assert caught.value.topic == topic
        assert "For example" in str(caught.value)


@given(GROUPS, TOPICS)
def test_names_of_parts_are_accepted(group, topic):
    assert check_topic(group) == check_group(group) == group
    assert check_topic(topic) == topic


@given(GROUPS, st.integers(0, 40), st.characters(blacklist_characters=ALLOWED + "./"))
def test_one_wrong_character_anywhere_is_refused(topic, where, wrong):
    for check in (check_topic, check_group):
        with pytest.raises(TopicError):
            check(topic[:where] + wrong + topic[where:])


@given(st.text(max_size=30) | st.text("aZ0_-../\n ", max_size=8))
def test_nothing_but_the_grammar_passes(text):
    grammar = all(part and not part.strip(ALLOWED) for part in re.split("[./]", text)) and text[0] != "_"
    try:
        check_topic(text)
    except TopicError:
        assert not grammar
    else:
        assert grammar


def test_two_hundred_bytes_and_no_more():
    longest = ".".join(["x" * 9] * 20) + "y"
    assert len(longest) == MAX_TOPIC_BYTES == 200
    assert check_topic(longest) == check_group(longest) == longest
    with pytest.raises(TopicError, match=r"201 bytes.*200"):
        check_topic(longest + "z")
    with pytest.raises(TopicError, match="200 bytes"):
        check_group(longest + "z")
    with pytest.raises(TopicError, match="202 bytes"):
        check_topic("é" * 101)  # bytes are counted, not letters
    with pytest.raises(TopicError, match="letters, digits"):
        check_topic("é" * 100)


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "the name is empty"),
        ("_a", "reserved"),
        ("a..b", "part before or after a dot is empty"),
        ("a.", "part before or after a dot is empty"),
        ("a//b", "part before or after a slash is empty"),
        ("a./b", "part before or after a slash is empty"),
        ("a b", "ASCII letters, digits, '_' and '-'.*joined by dots, or by '/' except on Kafka"),
        ("a.*", "only a subscription accepts a pattern.*letters, digits, '_' and '-'"),
        ("a*.b", "only a subscription accepts a pattern"),
        ("a.>", "only a subscription accepts a pattern"),
        ("a" * 40 + "é", "letters, digits, '_' and '-'"),
    ],
)
def test_the_message_says_what_is_wrong(topic, reason):
    with pytest.raises(TopicError, match=rf"^{re.escape(repr(topic))} is not a valid topic: .*{reason}"):
        check_topic(topic)


def test_the_message_shows_a_long_topic_shortened_and_escaped():
    with pytest.raises(TopicError) as caught:
        check_topic("cam\r\n" + "x" * 1_000_000)
    assert str(caught.value).startswith(r"'cam\r\nxxx")
    assert len(str(caught.value)) < 300
    with pytest.raises(TopicError) as caught:
        check_group("cam\r\n" + "x" * 1_000_000)
    assert len(str(caught.value)) < 300
    for topic, shown in [("a" * 59 + "!", "a" * 59 + "!"), ("a" * 60 + "!", "a" * 57 + "...")]:
        with pytest.raises(TopicError, match="^" + re.escape(repr(shown))):
            check_topic(topic)


@pytest.mark.parametrize("wrong", [None, b"a", 1, ["a"], {"a": 1}, object], ids=repr)
def test_only_text_is_a_topic(wrong):
    with pytest.raises(TopicError, match=f"not {type(wrong).__name__}") as caught:
        check_topic(wrong)
    assert caught.value.topic is wrong
    with pytest.raises(TopicError, match=f"A group name must be a str, not {type(wrong).__name__}"):
        check_group(wrong)


def test_the_reserved_names_are_those_of_the_contract():
    assert (NODES_TOPIC, SEQUENCE_TOPIC) == ("_msight.nodes", "_msight.seq")


def test_a_topic_error_is_a_bus_error_and_a_value_error():
    assert issubclass(TopicError, BusError)
    assert issubclass(TopicError, ValueError)


def test_what_is_remembered_is_bounded():
    from msight_bus import topics

    for i in range(3 * topics._CHECKED_LIMIT):
        check_topic(f"t{i}")
    assert len(topics._checked) <= topics._CHECKED_LIMIT
