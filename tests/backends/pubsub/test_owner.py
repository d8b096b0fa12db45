"""The owner of a connection over a scripted connector: what it takes, what it believes, and what it gives up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from msight_bus.backends.pubsub.reconnecting import ReconnectingConnection
from msight_bus.backends.pubsub.routes import Route
from msight_bus.errors import AuthenticationError, ConnectionLostError, PublishTimeoutError
from msight_bus.settings import Limits
from tests.support.links import Script, cut


class Record(SimpleNamespace):
    """Attributes of a test's own, which can be a key."""

    __hash__ = object.__hash__


class Owner(ReconnectingConnection):
    """Keeps what it tells."""

    def __init__(self, script: Script, **limits: float) -> None:
        self.script = script
        self.told: list[str] = []
        super().__init__(
            script,
            Limits(**{"reconnect_min": 0.1, "reconnect_max": 1.0, **limits}),
            publishes=True,
            on_lost=lambda owner, reason: self.told.append(f"lost: {reason}"),
            on_reconnected=lambda owner, attempts: self.told.append(f"back after {attempts}"),
            on_refused=lambda topic, error: None,
        )

    async def __aenter__(self) -> Owner:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(1.0)


def subscribed(topic: str, *, paused: bool = False):
    """A subscription that keeps the gaps and errors that it is told of (reconnecting.Subscriber)."""
    told: list[object] = []
    inbox = Record(gap=lambda missing, cause: told.append(cause), fail=told.append)
    stream = Record(silence=lambda within: 0.0)
    routes = [Route(topic, None, stream, lambda error: None)]
    return Record(inbox=inbox, routes=routes, paused=paused, told=told)


async def test_a_connection_that_is_gone_as_soon_as_it_is_open_is_lost(msight_simulation):
    async with Owner(Script(cut)) as owner:
        assert owner.connection is None
        assert await owner.connected() is owner.script.links[1]
        assert len(owner.told) == 2


async def test_a_refusal_is_believed_when_it_has_lasted_and_one_of_long_ago_does_not_count(msight_simulation):
    no = AuthenticationError("no")
    script = Script(None, no, None, no, None, *[no] * 100)
    script.refusal_patience = 5.0
    async with Owner(script) as owner:
        for i in range(3):
            assert await owner.connected() is script.links[i]
            await asyncio.sleep(60)
            cut(script.links[i])
        start = asyncio.get_running_loop().time()
        with pytest.raises(AuthenticationError):
            await owner.connected()
        assert 5.0 <= asyncio.get_running_loop().time() - start < 10.0
        assert owner.is_over


async def test_what_was_subscribed_comes_back_as_it_was_and_is_told_of_the_gap(msight_simulation):
    async with Owner(Script(None, ConnectionLostError("still away"), None)) as owner:
        free, held = subscribed("a"), subscribed("b", paused=True)
        for one in (free, held):
            await owner.join(one, "x")
        assert not owner.connection.reading_paused
        cut(owner.connection)
        link = await owner.connected()
        assert link is owner.script.links[1]
        assert all(link.carries(one.routes[0]) for one in (free, held))
        assert link.reading_paused
        await asyncio.sleep(0)
        assert (free.told, held.told) == (["reconnect"], ["reconnect"])
        assert owner.told == ["lost: cut", "back after 2"]
        await owner.leave(free)
        cut(link)
        link = await owner.connected()
        assert [link.carries(one.routes[0]) for one in (free, held)] == [False, True]
        assert (free.told, held.told) == (["reconnect"], ["reconnect"] * 2)


async def test_a_topic_has_the_streams_of_those_that_are_subscribed(msight_simulation):
    error = AuthenticationError("no more")
    async with Owner(Script()) as owner:
        one, other = subscribed("a"), subscribed("a")
        for each in (one, other):
            await owner.join(each, "a")
        assert list(owner.streams("a")) == [one.routes[0].stream, other.routes[0].stream]
        await owner.leave(one)
        await owner.leave(one)
        assert list(owner.streams("a")) == [other.routes[0].stream]
        owner.fail(other, error)
        assert (list(owner.streams("a")), owner._streams, other.told) == ([], {}, [error])
        cut(owner.connection)
        link = await owner.connected()
        assert not link.hears("a")


async def test_the_pause_between_two_tries_is_bounded(msight_simulation):
    async with Owner(Script(None, *[ConnectionLostError("away")] * 40)) as owner:
        cut(owner.connection)
        await asyncio.sleep(41)  # of 1 s at most each
        assert owner.connection is not None


async def test_what_is_entered_while_the_bus_moves_is_subscribed_at_the_new_server_alone(msight_simulation):
    async with Owner(Script()) as owner:
        old, one = owner.connection, subscribed("a")
        old.unanswered = []
        joining = asyncio.create_task(owner.join(one, "a"))
        await asyncio.sleep(0.1)
        owner.script.on_leaving(old)
        await asyncio.sleep(1.1)  # a move waits for that long behind the opening
        new = owner.connection
        assert new is not old
        old.unanswered[0].finish()
        await joining
        assert (old.hears("a"), new.hears("a")) == (False, True)


async def test_a_round_trip_without_an_answer_confirms_nothing(msight_simulation):
    async with Owner(Script()) as owner:
        owner.connection.mute = True
        await owner.confirm()  # of nothing
        owner.connection.in_flight.wrote(SimpleNamespace(run=None, connection_lost=lambda count, reason: None))
        with pytest.raises(PublishTimeoutError, match="may still arrive"):
            await owner.confirm()
        owner.connection.mute = False
        await owner.confirm()


@pytest.mark.parametrize("mute", [False, True])
async def test_closing_waits_for_a_confirmation_of_what_is_in_flight(msight_simulation, mute):
    lost: list[int] = []
    async with Owner(Script()) as owner:
        owner.connection.mute = mute
        owner.connection.in_flight.wrote(
            SimpleNamespace(run=None, connection_lost=lambda count, reason: lost.append(count))
        )
    assert lost == [1] * mute
    assert owner.script.links[0].gone.done()


async def test_whoever_waits_for_room_gets_the_connection_that_there_is_then(msight_simulation):
    async with Owner(Script()) as owner:
        owner.connection.congested = True
        waiting = asyncio.create_task(owner.writable())
        await asyncio.sleep(0.1)
        cut(owner.connection)
        assert await waiting is owner.script.links[1]


async def test_a_bus_that_is_closed_while_it_reconnects_leaves_no_connection(msight_simulation):
    script = Script(None)
    async with Owner(script) as owner:
        cut(owner.connection)
        script.steps = [lambda link: setattr(owner, "_closed", True)]  # closed in the moment in which it is open
        while len(script.links) < 2:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        assert script.links[1].gone.done()
        owner._closed = False
