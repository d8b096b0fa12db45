from __future__ import annotations

import pytest

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, Limits


def test_a_dead_link_is_noticed_within_15_seconds_by_default():
    limits = Limits()
    assert limits.ping_interval + limits.pong_timeout < 15


def test_defaults():
    limits = BusSettings(environ={}).limits
    assert limits == Limits()
    assert (limits.connect_timeout, limits.publish_timeout, limits.block_timeout, limits.drain_timeout) == (
        10,
        10,
        2,
        10,
    )
    assert limits.reconnect_limit is None
    assert limits.max_decoded_bytes == limits.max_message_bytes == 2 * limits.queue_bytes == 64 * 1024 * 1024


@pytest.mark.parametrize("field", Limits.table())
def test_each_limit_has_its_variable(field):
    wanted = 3 if field.startswith(("max_", "queue_", "publisher_", "stats_", "reconnect_limit")) else 0.5
    settings = BusSettings(environ={f"MSIGHT_{field.upper()}": str(wanted)})
    assert getattr(settings.limits, field) == wanted
    with pytest.raises(ConfigError, match=f"^MSIGHT_{field.upper()} must be"):
        BusSettings(environ={f"MSIGHT_{field.upper()}": "-1"})


def test_the_shortest_pause_is_not_over_the_longest():
    with pytest.raises(ConfigError, match="MSIGHT_RECONNECT_MIN must be at most MSIGHT_RECONNECT_MAX"):
        BusSettings(environ={"MSIGHT_RECONNECT_MIN": "3"})
    assert BusSettings(environ={"MSIGHT_RECONNECT_MIN": "1"}).limits.reconnect_min == 1
