"""NATS refuses a subscription: over ``max_subscriptions``, or because a reload took a permission away. Real servers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msight_bus import AuthenticationError, BusError
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import Backend, start_broker
from tests.support.receiving import take
from tests.support.reloading import NatsServer
from tests.support.rig import QUICKLY, seen, until
from tests.support.scripted_peers import ScriptedPeer, bus_at

QUIET = {"MSIGHT_ANNOUNCE": "false", "MSIGHT_CONNECT_TIMEOUT": "3"}
MOST = 12
"""Subscriptions that the server takes on a connection, those on reserved topics included."""


@asynccontextmanager
async def at_server(*config, user=""):
    """A bus at a server of its own, its events, the server, and another bus that publishes."""
    events: list = []
    broker = await asyncio.to_thread(start_broker, "nats", config)
    with broker:
        credentials = {"MSIGHT_NATS_USERNAME": user, "MSIGHT_NATS_PASSWORD": "secret"} if user else {}
        backend = Backend("nats", dict(broker.env) | credentials)
        near = backend
        if user:
            near = Backend("nats", dict(broker.env) | credentials | {"MSIGHT_NATS_USERNAME": "near"})
        async with near.connect(**QUIET) as other, backend.connect(events=events, **QUIET, **QUICKLY) as bus:
            yield bus, events, NatsServer(broker), other


async def receives(bus, messages, topic):
    """What is published on a topic arrives."""
    await bus.publish(topic, b"x")
    assert [message.payload for message in await take(messages, 1, within=3)] == [b"x"]


# -- max_subscriptions


async def enter_too_many(bus, stack, count=MOST + 3):
    """Enter subscriptions at once; gives those that were entered, by topic, and the errors of the others."""
    subscriptions = {f"t{i}": bus.subscribe(f"t{i}") for i in range(count)}
    results = await asyncio.gather(
        *(subscription.__aenter__() for subscription in subscriptions.values()), return_exceptions=True
    )
    entered, errors = {}, {}
    for (topic, subscription), result in zip(subscriptions.items(), results, strict=True):
        if isinstance(result, BaseException):
            errors[topic] = result
        else:
            stack.push_async_exit(subscription)
            entered[topic] = result
    return entered, errors


async def test_one_over_the_limit_raises_and_the_others_go_on():
    async with at_server(f"max_subscriptions: {MOST}") as (bus, events, _, other), AsyncExitStack() as stack:
        entered = {}
        with pytest.raises(BusError, match="maximum subscriptions exceeded") as caught:
            for i in range(MOST + 1):
                entered[f"t{i}"] = await stack.enter_async_context(bus.subscribe(f"t{i}"))
        assert f"t{len(entered)}" in str(caught.value)
        assert len(entered) >= MOST - 2
        for topic, messages in entered.items():
            await receives(other, messages, topic)
        async with bus.publisher("b") as publisher:
            await publisher.send(b"x")
        assert not seen(events, Disconnected)


async def test_of_many_at_once_those_over_the_limit_raise():
    async with at_server(f"max_subscriptions: {MOST}") as (bus, events, _, other), AsyncExitStack() as stack:
        entered, errors = await enter_too_many(bus, stack)
        assert MOST - 2 <= len(entered) <= MOST
        assert all(isinstance(error, BusError) and topic in str(error) for topic, error in errors.items())
        for topic, messages in entered.items():
            await receives(other, messages, topic)
        assert not seen(events, Disconnected)


async def test_behind_one_that_was_left_there_is_room_again():
    async with at_server(f"max_subscriptions: {MOST}") as (bus, events, _, other), AsyncExitStack() as stack:
        async with bus.subscribe("left"):
            _, errors = await enter_too_many(bus, stack)
            assert errors
        messages = await stack.enter_async_context(bus.subscribe("again"))
        await receives(other, messages, "again")
        with pytest.raises(BusError):
            async with bus.subscribe("and.again"):
                pass
        assert not seen(events, Disconnected)


async def test_after_a_restart_with_a_lower_limit_those_over_it_raise_and_the_others_go_on():
    limit = f"max_subscriptions: {MOST}"
    async with at_server(limit) as (bus, events, server, _), AsyncExitStack() as stack:
        entered = {f"t{i}": await stack.enter_async_context(bus.subscribe(f"t{i}")) for i in range(6)}
        server.change(limit, "max_subscriptions: 4")
        await asyncio.to_thread(server.broker.restart)
        await until(lambda: seen(events, Reconnected), within=4)
        failed = 0
        for topic, messages in entered.items():
            try:
                await receives(bus, messages, topic)
            except BusError:
                failed += 1
        assert 2 <= failed <= 4
        assert len(seen(events, Disconnected)) == 1


async def test_an_error_that_names_nothing_belongs_to_the_subscription_that_waits():
    """The PONG behind it confirms nothing; one that no subscription waits for is logged."""

    def answer(command):
        return b"-ERR 'maximum subscriptions exceeded'\r\n" if command.verb == "SUB" and b"b" in command.words else None

    peer = ScriptedPeer("nats", answer)
    async with bus_at(peer, **QUIET) as at:
        a, b, c = (at.bus.subscribe(topic) for topic in "abc")
        results = await asyncio.gather(*(each.__aenter__() for each in (a, b, c)), return_exceptions=True)
        assert [isinstance(result, BusError) for result in results] == [False, True, False]
        for topic in "ac":
            subscribed = next(each for each in peer.subscriptions if each.topic == topic)
            subscribed.send(subscribed.message(7, 1, b"x"))
        await take(a, 1, within=3)
        await take(c, 1, within=3)
        assert not at.seen(Disconnected)
        await a.__aexit__(None, None, None)
        await c.__aexit__(None, None, None)


# -- permissions

DENIES_NOTHING = 'subscribe: {allow: [">"], deny: ["nothing"]}'
DENIES_A = 'subscribe: {allow: [">"], deny: ["site.a"]}'
USERS = (
    "authorization { users = ["
    f' {{user: "alice", password: "secret", permissions: {{publish: ">", {DENIES_NOTHING}}}}},'
    ' {user: "near", password: "secret"} ] }'
)


@pytest.mark.parametrize("group_id", [None, "g"], ids=["alone", "group"])
async def test_a_permission_that_is_taken_away_is_raised_by_the_iterator(group_id):
    async with at_server(USERS, user="alice") as (bus, events, server, other), AsyncExitStack() as stack:
        a = await stack.enter_async_context(bus.subscribe("site.a", group_id=group_id))
        b = await stack.enter_async_context(bus.subscribe("site.b"))
        await receives(other, a, "site.a")
        waiting = asyncio.create_task(anext(a))
        await server.reload(DENIES_NOTHING, DENIES_A)
        with pytest.raises(AuthenticationError, match=r"site\.a"):
            async with asyncio.timeout(2):
                await waiting
        await receives(other, b, "site.b")
        async with bus.publisher("site.c") as publisher:
            await publisher.send(b"x")
        assert not seen(events, Disconnected)


async def test_each_of_two_subscriptions_of_the_topic_raises():
    async with at_server(USERS, user="alice") as (bus, events, server, _), AsyncExitStack() as stack:
        both = [await stack.enter_async_context(bus.subscribe("site.a")) for _ in range(2)]
        await server.reload(DENIES_NOTHING, DENIES_A)
        for messages in both:
            with pytest.raises(AuthenticationError):
                await take(messages, 1, within=2)
        assert not seen(events, Disconnected)


async def test_a_permission_that_is_given_back_lets_a_subscription_in_again():
    async with at_server(USERS, user="alice") as (bus, events, server, other):
        await server.reload(DENIES_NOTHING, DENIES_A)
        with pytest.raises(AuthenticationError):
            async with bus.subscribe("site.a"):
                pass
        await server.reload(DENIES_A, DENIES_NOTHING)
        async with bus.subscribe("site.a") as messages:
            await receives(other, messages, "site.a")
        assert not seen(events, Disconnected)


async def test_what_is_subscribed_while_the_old_one_is_refused_receives_when_the_permission_is_back():
    """What was taken away stays away for the old subscription; a new one is a new try."""
    async with at_server(USERS, user="alice") as (bus, events, server, other), AsyncExitStack() as stack:
        old = await stack.enter_async_context(bus.subscribe("site.a"))
        await server.reload(DENIES_NOTHING, DENIES_A)
        with pytest.raises(AuthenticationError):
            await take(old, 1, within=2)
        await server.reload(DENIES_A, DENIES_NOTHING)
        new = await stack.enter_async_context(bus.subscribe("site.a"))
        await receives(other, new, "site.a")
        with pytest.raises(AuthenticationError):
            await take(old, 1, within=2)
        assert not seen(events, Disconnected)


async def test_announcements_that_are_taken_away_end_the_detection_of_tail_losses_alone(caplog):
    denies_reserved = 'subscribe: {allow: [">"], deny: ["_msight.>"]}'
    async with at_server(USERS, user="alice") as (bus, events, server, other), AsyncExitStack() as stack:
        a = await stack.enter_async_context(bus.subscribe("site.a"))
        assert bus.capabilities.tail_loss
        await server.reload(DENIES_NOTHING, denies_reserved)
        await until(lambda: not bus.capabilities.tail_loss, within=2)
        await receives(other, a, "site.a")
        assert not seen(events, Disconnected)
    assert sum("_msight.seq" in record.getMessage() for record in caplog.records) == 1


def refusal(words):
    """As a server words it when a reload took the permission away."""
    return b'-ERR \'Permissions Violation for Subscription to "%b" (sid "%b")\'\r\n' % (words[0], words[-1])


async def test_a_refusal_that_comes_later_belongs_to_the_subscription_whose_id_it_names():
    """Two of one topic in two groups: the other one goes on."""
    peer = ScriptedPeer("nats")
    async with bus_at(peer, **QUIET) as at, AsyncExitStack() as stack:
        one = await stack.enter_async_context(at.bus.subscribe("a", group_id="g"))
        other = await stack.enter_async_context(at.bus.subscribe("a", group_id="h"))
        first, second = peer.subscriptions
        first.send(refusal((b"a", first.address)))
        with pytest.raises(AuthenticationError):
            await take(one, 1, within=2)
        second.send(second.message(7, 1, b"x"))
        await take(other, 1, within=2)
        assert not at.seen(Disconnected)


async def test_a_refused_group_harms_no_other_subscription_of_the_topic():
    """While subscribing the server names the topic and the group, and no id."""

    def answer(command):
        if command.verb == "SUB" and command.words[:2] == (b"a", b"g"):
            return b'-ERR \'Permissions Violation for Subscription to "a" using queue "g"\'\r\n'
        return None

    peer = ScriptedPeer("nats", answer)
    async with bus_at(peer, **QUIET) as at:
        subscriptions = [at.bus.subscribe("a", group_id=group_id) for group_id in ("h", "g", None)]
        results = await asyncio.gather(*(each.__aenter__() for each in subscriptions), return_exceptions=True)
        assert [type(result) is AuthenticationError for result in results] == [False, True, False]
        for messages in subscriptions[::2]:
            await messages.__aexit__(None, None, None)
        assert not at.seen(Disconnected)
