"""One subscription of many topics on real Redis and NATS: invalid channels, refusals, slow links, 10,000 topics."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from msight_bus import AuthenticationError
from msight_bus.events import Reconnected
from tests.support.brokers import Backend, make_backend
from tests.support.proxy import FaultProxy, port_of, through
from tests.support.raw_publishers import raw_publisher
from tests.support.receiving import take
from tests.support.reloading import NatsServer
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until
from tests.support.servers import PREFIX

live = pytest.mark.parametrize("kind", LIVE)
QUIET = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}

_ALLOWS, _DENIES = 'deny: ["no.never"]', 'deny: ["no.>"]'
DENYING = {
    "redis": ["user alice on >secret ~* resetchannels &_msight.* &ok.* +@all", "user near on >secret ~* &* +@all"],
    "nats": [
        "authorization { users = [",
        f'  {{user: "alice", password: "secret", permissions: {{publish: ">", subscribe: {{allow: [">"], {_DENIES}}}}}}},',
        '  {user: "near", password: "secret"} ] }',
    ],
}


def member(kind, backend, name):
    credentials = {f"{PREFIX[kind]}USERNAME": name, f"{PREFIX[kind]}PASSWORD": "secret"}
    return Backend(kind, {**backend.env, **credentials})


async def publish_raw(backend, names):
    """Publish one foreign message on each channel, whose name is any bytes."""
    async with raw_publisher(backend) as publisher:
        for name in names:
            if backend.name == "redis":
                publisher._writer.write(b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$1\r\nx\r\n" % (len(name), name))
            else:
                publisher._writer.write(b"PUB %b 1\r\nx\r\n" % name)
        await publisher.send("unrelated", [(1, 1)])


@live
async def test_channels_that_are_no_topics_are_counted_and_not_delivered(kind, topic):
    backend = make_backend(kind)
    start = topic.encode() + b"."
    names = [start + rest for rest in (b"a$b", b"caf\xc3\xa9", b"\xff\xfe", b"a" * 300, b"a$b")]
    async with backend.connect() as bus, bus.subscribe([f"{topic}.*", f"{topic}.>"]) as messages:
        await publish_raw(backend, [*names, start + b"good"])
        (message,) = await take(messages, 1)
        await until(lambda: messages.stats.received == 6)
        assert (message.topic, message.payload) == (f"{topic}.good", b"x")
        assert dict(messages.stats.dropped) == {"invalid topic": 5}
        assert list(messages.stats.topics) == [f"{topic}.good"]


@live
async def test_channels_that_match_the_brokers_pattern_only_are_not_counted(kind, topic):
    backend = make_backend(kind)
    async with backend.connect() as bus, bus.subscribe([f"{topic}.*", f"{topic}.*.raw"]) as messages:
        names = [f"{topic}.{rest}".encode() for rest in ("a.b", "a.b.raw", "a.raw.b", "a$b.c", "a")]
        await publish_raw(backend, names)
        assert [message.topic for message in await take(messages, 1)] == [f"{topic}.a"]
        assert (messages.stats.received, dict(messages.stats.dropped)) == (1, {})


@live
async def test_a_bound_number_of_addresses_is_remembered(kind, topic):
    backend = make_backend(kind)
    async with backend.connect(MSIGHT_STATS_TOPICS="20") as bus, bus.subscribe(f"{topic}.*") as messages:
        for _ in range(2):
            await publish_raw(backend, [f"{topic}.t{number}".encode() for number in range(100)])
            assert len({message.topic for message in await take(messages, 100)}) == 100
        connection = bus.core.backend._subscribing.connection
        (route,) = [route for routes in connection._patterns.values() for route in routes]
        assert (len(connection._matched), len(route.routes)) == (20, 20)
    assert (connection._matched, connection._patterns) == ({}, {})


# -- refusals


@asynccontextmanager
async def restricted(kind):
    """A bus of a user who may not subscribe to ``no.…``, and one of a user who may do anything."""
    with own_broker(kind, DENYING[kind]) as (broker, backend):
        async with member(kind, backend, "alice").connect(**QUICKLY) as bus:
            async with member(kind, backend, "near").connect() as near:
                yield broker, bus, near


@live
@pytest.mark.parametrize("refused", ["no.t500", "no.*"])
async def test_a_refusal_of_one_of_many_names_the_topic_and_leaves_nothing_subscribed(kind, refused):
    async with restricted(kind) as (_, bus, near):
        topics = [f"ok.t{number}" for number in range(1000)]
        with pytest.raises(AuthenticationError, match=refused.replace("*", r"\*")):
            async with bus.subscribe([*topics[:500], refused, *topics[500:]]):
                pass
        async with bus.subscribe(["ok.*", "ok.t1.raw"]) as messages:
            await near.publish("ok.t1", b"x")
            await near.publish("ok.t1.raw", b"x")
            assert {message.topic for message in await take(messages, 2)} == {"ok.t1", "ok.t1.raw"}
            connection = bus.core.backend._subscribing.connection
            assert {route.topic for route in connection._addresses} == {"ok.*", "ok.t1.raw", "_msight.seq"}


async def test_a_permission_that_is_taken_away_from_one_topic_ends_the_subscription_on_all():
    async with restricted("nats") as (broker, bus, near):
        server = NatsServer(broker)
        await server.reload(_DENIES, _ALLOWS)
        async with bus.subscribe(["ok.a", "no.a", "no.b.*"], group_id="g") as messages, bus.subscribe("ok.>") as other:
            await near.publish("no.b.c", b"x")
            await take(messages, 1)
            await server.reload(_ALLOWS, _DENIES)
            with pytest.raises(AuthenticationError, match=r"no\.[ab]"):
                await take(messages, 1)
            await near.publish("ok.a", b"x")  # may arrive before the broker has unsubscribed the other topics
            await take(other, 1)
            before = messages.stats.received
            await near.publish("ok.a", b"y")
            await take(other, 1)
            assert messages.stats.received == before


@live
async def test_a_refusal_on_reconnecting_ends_the_subscription_on_all_its_topics(kind):
    async with restricted(kind) as (broker, bus, near):
        if kind == "nats":
            await NatsServer(broker).reload(_DENIES, _ALLOWS)
        else:
            await _set_channels(broker, "allchannels")
        async with bus.subscribe(["ok.a", "no.*"]) as messages, bus.subscribe("ok.>") as other:
            if kind == "nats":
                await NatsServer(broker).reload(_ALLOWS, _DENIES)
            else:  # Redis closes the connections of subscribers that have lost a channel
                await _set_channels(broker, "resetchannels", "&ok.*", "&_msight.*", "&ok.a")
            with pytest.raises(AuthenticationError, match=r"no\.\*"):
                await take(messages, 1)
            await near.publish("ok.a", b"x")  # may arrive before the broker has unsubscribed the other topics
            await take(other, 1)
            before = messages.stats.received
            await near.publish("ok.a", b"y")
            await take(other, 1)
            assert messages.stats.received == before


async def _set_channels(broker, *rules):
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    words = [word.encode() for word in ("ACL", "SETUSER", "alice", *rules)]
    writer.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
    assert await reader.readline() == b"+OK\r\n"
    writer.close()
    await writer.wait_closed()


# -- many


@live
async def test_a_thousand_topics_are_subscribed_in_few_round_trips(kind, topic):
    """One after the other, they would take 40 s over this link."""
    backend = make_backend(kind)
    async with FaultProxy(port_of(backend)) as proxy:
        async with through(proxy, backend).connect(**QUIET) as bus:
            proxy.conditions.delay = 0.02
            async with asyncio.timeout(10), bus.subscribe([f"{topic}.t{i}" for i in range(1000)]) as messages:
                await bus.publish(f"{topic}.t999", b"x")
                assert [message.topic for message in await take(messages, 1)] == [f"{topic}.t999"]


@live
async def test_ten_thousand_topics_come_back(kind, topic):
    events: list = []
    backend = make_backend(kind)
    async with FaultProxy(port_of(backend)) as proxy:
        async with through(proxy, backend).connect(events=events, **QUIET) as bus, backend.connect() as near:
            async with bus.subscribe([f"{topic}.t{i}" for i in range(10_000)]) as messages:
                await proxy.reset()
                await until(lambda: seen(events, Reconnected))
                for i in (0, 5000, 9999):
                    await near.publish(f"{topic}.t{i}", b"x")
                assert {message.topic for message in await take(messages, 3)} == {
                    f"{topic}.t{i}" for i in (0, 5000, 9999)
                }
                assert messages.stats.gaps == 10_000
