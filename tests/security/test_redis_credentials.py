"""Redis: passwords and users are accepted or refused at once, and missing permissions are raised."""

from __future__ import annotations

import pytest

import msight_bus
from msight_bus import AuthenticationError
from msight_bus.events import Refused
from tests.support.canaries import canary
from tests.support.listeners import proxy
from tests.support.servers import PASSWORD, WRONG, start, variables
from tests.support.talking import refused, settings_of, talk

LIMITED = canary("limited")


@pytest.fixture(scope="module")
def broker():
    lines = [
        f"requirepass {PASSWORD}",
        f"user alice on >{PASSWORD} ~* &* +@all",
        f"user limited on >{LIMITED} ~* resetchannels &ok.* +@all",
        f"user off off >{PASSWORD} ~* &* +@all",
    ]
    with start("redis", config=lines) as broker:
        yield broker


@pytest.mark.parametrize("user", [{}, {"USERNAME": "default"}, {"USERNAME": "alice"}])
async def test_the_right_password_is_accepted(broker, user):
    await talk(settings_of(variables("redis", broker.port, PASSWORD=PASSWORD, **user)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"PASSWORD": WRONG},
        {"USERNAME": "alice", "PASSWORD": WRONG},
        {"USERNAME": "nobody", "PASSWORD": PASSWORD},
        {"USERNAME": "off", "PASSWORD": PASSWORD},
    ],
)
async def test_a_wrong_or_missing_password_is_refused_once(broker, watch, given):
    async with proxy(broker.port) as way:
        settings = settings_of(variables("redis", way.port, **given))
        await refused(AuthenticationError, settings, watch, "WRONGPASS|NOAUTH|(?i:password|required)")
        assert way.connections == 1


async def test_a_missing_publish_permission_is_raised_by_the_next_publish(broker, watch):
    events = []
    settings = settings_of(variables("redis", broker.port, USERNAME="limited", PASSWORD=LIMITED))
    async with msight_bus.connect(settings, on_event=events.append) as bus:
        with pytest.raises(AuthenticationError, match="(?i)no ?perm") as caught:
            async with bus.publisher("not.ok") as publisher:
                await publisher.send(b"x")
        watch.show(caught.value, *events)
        assert [event.topic for event in events if isinstance(event, Refused)] == ["not.ok"]

        await bus.publish("not.ok", b"x")
        async with bus.publisher("ok.a") as publisher:  # its round trip brings the refusal too
            await publisher.send(b"x")
        with pytest.raises(AuthenticationError, match="(?i)no ?perm"):
            await bus.publish("not.ok", b"x")


async def test_a_missing_subscribe_permission_is_raised_on_entering(broker, watch):
    settings = settings_of(variables("redis", broker.port, USERNAME="limited", PASSWORD=LIMITED))
    async with msight_bus.connect(settings) as bus:
        with pytest.raises(AuthenticationError, match="(?i)no ?perm") as caught:
            async with bus.subscribe("not.ok"):
                pass
        watch.show(caught.value)
        async with bus.subscribe("ok.a") as messages:
            await bus.publish("ok.a", b"still here")
            assert (await anext(messages)).payload == b"still here"


async def test_a_user_without_permission_for_config_get_can_publish(watch):
    few = f"user few on >{LIMITED} resetchannels &* -@all +publish +subscribe +unsubscribe +ping"
    with start("redis", config=[f"requirepass {PASSWORD}", few]) as broker:
        await talk(settings_of(variables("redis", broker.port, USERNAME="few", PASSWORD=LIMITED)))
