from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.errors import ConfigError
from msight_bus.settings import HostPort, Limits, NatsSettings, RedisSettings
from msight_bus.settings.section import Section, variable
from msight_bus.settings.value_types import SECRET, whole


@dataclass(frozen=True, init=False)
class Few(Section):
    prefix = "FEW_"
    number: int = variable(whole(1, 9, "4"), 2, "A number.")
    secret: str | None = variable(SECRET, None, "A secret.", name="SECRET")


def problem(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Few(**values)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_a_section_made_by_hand_takes_text_and_values():
    assert RedisSettings(port="6380", cluster_nodes=[HostPort("a", 1)]) == RedisSettings(port=6380, cluster_nodes="a:1")


def test_its_wrong_values_are_one_config_error_with_nothing_behind_it():
    with pytest.raises(ConfigError) as caught:
        RedisSettings(port=0, wire="yaml", password=["CANARY"], hots="a")
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for name in ("MSIGHT_REDIS_MESSAGE_BROKER_PORT", "MSIGHT_WIRE", "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD", "'hots'"):
        assert name in problems
    assert "did you mean 'host'?" in problems
    assert "CANARY" not in problems
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_sections_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Limits().max_nesting = 5  # type: ignore[misc]


def test_only_what_has_no_default_may_be_none_or_empty():
    assert RedisSettings(username=None, cluster_nodes=[]) == RedisSettings()
    with pytest.raises(ConfigError) as caught:
        RedisSettings(port=None, username=[], cluster_nodes=None)
    assert len(caught.value.problems) == 3


def test_secrets_of_a_section_do_not_show():
    section = NatsSettings(token="CANARY", servers="nats://u:CANARY@a")
    assert "CANARY" not in f"{section} {section!r} {section.dump()} {vars(section)}"
    assert section.token is not None
    assert section.token.get_secret_value() == "CANARY"


def test_a_sentence_names_what_is_accepted_an_example_and_the_value():
    assert problem(number="ten") == "FEW_NUMBER must be a whole number from 1 to 9, such as FEW_NUMBER=4; it is 'ten'."
    assert problem(secret="\ud800") == (
        "SECRET must be a text of 1 to 65536 characters, such as SECRET=s3cret; it is not UTF-8."
    )


@given(st.text())
def test_a_sentence_stays_short_and_on_one_line(value):
    if value.strip() not in [*"123456789"]:
        sentence = problem(number=value)
        assert len(sentence) < 150
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
    assert "CANARY" not in problem(number=value)


@pytest.mark.parametrize("value", ["CANARY" * 20_000, "CANARY\ud800", ["CANARY"], 5])
def test_a_wrong_secret_is_not_shown(value):
    sentence = problem(secret=value)
    assert "CANARY" not in sentence
    assert "5" not in sentence.replace("65536", "")


@pytest.mark.parametrize(
    ("name", "shown"), [("number_", "'number_'; did you mean 'number'?"), ("nats://u:CANARY@a", "....")]
)
def test_a_name_that_is_no_setting(name, shown):
    assert problem(**{name: 1}) == f"Few has no setting {shown}"


def test_a_name_that_is_no_text():
    section, (wrong,) = Few.read({1: 2})
    assert wrong.sentence == "Few has no setting 1."
    assert section == Few()
