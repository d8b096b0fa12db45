from __future__ import annotations

import pytest
from pydantic import ValidationError

from msight_bus.errors import ConfigError
from msight_bus.settings import HostPort, Limits, NatsSettings, RedisSettings


def test_a_section_made_by_hand_takes_text_and_values():
    assert RedisSettings(port="6380", cluster_nodes=[HostPort("a", 1)]) == RedisSettings(  # type: ignore[arg-type]
        port=6380, cluster_nodes="a:1"
    )


def test_its_wrong_values_are_one_config_error_with_nothing_behind_it():
    with pytest.raises(ConfigError) as caught:
        RedisSettings(port=0, wire="yaml", password=["CANARY"], hots="a")  # type: ignore[call-arg, arg-type]
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for name in ("MSIGHT_REDIS_MESSAGE_BROKER_PORT", "MSIGHT_WIRE", "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD", "'hots'"):
        assert name in problems
    assert "did you mean 'host'?" in problems
    assert "CANARY" not in problems
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_sections_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Limits().max_nesting = 5


def test_secrets_of_a_section_do_not_show():
    section = NatsSettings(token="CANARY", servers="nats://u:CANARY@a")  # type: ignore[arg-type]
    assert "CANARY" not in f"{section} {section!r} {section.model_dump()} {section.model_dump_json()}"
    assert section.token is not None
    assert section.token.get_secret_value() == "CANARY"
