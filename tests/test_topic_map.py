"""The map between names on the broker and topics: what is accepted, and both directions."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.errors import ConfigError, TopicError
from msight_bus.settings import BusSettings
from msight_bus.topic_map import TopicMap, parse_topic_map

NAMES = st.text(max_size=6) | st.sampled_from(
    ["a b", "camera@gs ne", "x.y", "_msight.seq", "\r\nSUB x 1\r\n", "*", "é"]
)
TOPICS = st.text("ab._/", max_size=4) | st.sampled_from(["x.y", "camera.gs_ne"])


def settings_of(value, **variables):
    return BusSettings(environ={"MSIGHT_TOPIC_MAP": value, **variables})


def test_both_directions():
    made = parse_topic_map('{"camera@gs ne": "camera.gs_ne", "camera.old": "camera.new"}')
    assert made.on_broker("camera.gs_ne") == "camera@gs ne"
    assert made.topic_of("camera@gs ne") == "camera.gs_ne"
    assert made.on_broker("lidar") == made.topic_of("lidar") == "lidar"


def test_a_topic_is_never_two_names():
    made = parse_topic_map({"camera.old": "camera.new"})
    with pytest.raises(TopicError, match=r"maps the name 'camera\.old' on the broker to the topic 'camera\.new'"):
        made.on_broker("camera.old")
    assert made.on_broker("camera.new") == made.on_broker(made.topic_of("camera.new")) == "camera.old"


def test_two_names_can_be_exchanged():
    made = parse_topic_map({"a": "b", "b": "a", "c": "c"})
    assert [made.on_broker(name) for name in "abc"] == [made.topic_of(name) for name in "abc"] == ["b", "a", "c"]


@given(st.dictionaries(NAMES, TOPICS))
def test_every_accepted_map_is_one_to_one(entries):
    try:
        made = parse_topic_map(json.dumps(entries))
    except ValueError:
        with pytest.raises(ConfigError, match="MSIGHT_TOPIC_MAP must be"):
            BusSettings(environ={}, topic_map=entries)
        return
    assert made == parse_topic_map(entries)
    for name in {*entries, "other"} - {*entries.values()}:
        assert made.on_broker(made.topic_of(name)) == name


@given(
    st.text()
    | st.integers()
    | st.lists(st.integers())
    | st.tuples(st.text())
    | st.dictionaries(st.integers(), st.text())
)
def test_any_other_value_is_a_problem_of_the_variable(value):
    try:
        assert isinstance(parse_topic_map(value), TopicMap)
    except ValueError:
        pass
    else:
        assert value == {} or (isinstance(value, str) and json.loads(value) is not None)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "\x00", '{"a": "b"', "NaN", "null"])
def test_hostile_text(text):
    with pytest.raises(ConfigError, match="MSIGHT_TOPIC_MAP must be a JSON object"):
        settings_of(text)


def test_the_number_of_entries_is_bounded():
    entries = {f"n {number}": f"t{number}" for number in range(10_000)}
    assert len(settings_of(json.dumps(entries)).topic_map.entries) == 10_000
    with pytest.raises(ConfigError, match="more than 10,000 entries"):
        settings_of(json.dumps({**entries, "one more": "t"}))


def test_it_is_a_setting_like_the_others():
    settings = settings_of('{"a b": "c"}')
    assert settings.dump()["topic_map"] == {"a b": "c"}
    assert BusSettings(environ={}, **settings.dump()) == settings == BusSettings(environ={}, topic_map={"a b": "c"})
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(settings_of('{"a b": "c"}'))
    assert settings_of("").topic_map == TopicMap()


def test_all_names_that_a_broker_does_not_accept_are_named():
    made = parse_topic_map({"good": "a", "b d": "b", "c\r\nd": "c"})
    with pytest.raises(ConfigError) as caught:
        made.check_for("NATS", re.compile("[a-z]+"), "letters")
    assert caught.value.problems == (
        "MSIGHT_TOPIC_MAP must name topics of NATS, letters, not 'b d'.",
        "MSIGHT_TOPIC_MAP must name topics of NATS, letters, not 'c\\r\\nd'.",
    )
