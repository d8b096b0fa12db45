"""What only Redis pub/sub has: a prefix in place of headers, raw payloads, Unix sockets."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msight_bus import AuthenticationError, HeaderError, brokers
from msight_bus.protocol import envelope
from tests.support.brokers import Backend
from tests.support.receiving import take
from tests.support.rig import own_broker
from tests.support.typed import Point


def client_of(redis):
    return Redis(host="127.0.0.1", port=int(redis.env["MSIGHT_REDIS_MESSAGE_BROKER_PORT"]))


def framed(payload):
    return envelope.prefix(7, 1, 1_700_000_000_000_000_000, b"") + payload


async def test_other_makes_publish_raw_payloads(redis, topic):
    foreign = [b"plain", b"\xc1", b"\xc1MB\x01 but no more of it", b"\x82\xa9data_type"]
    async with redis.connect() as bus, bus.subscribe(topic) as messages, client_of(redis) as client:
        for payload in foreign:
            await client.publish(topic, payload)
        received = await take(messages, len(foreign))
    assert [message.payload for message in received] == foreign
    assert {(message.sequence, message.published_at, message.key) for message in received} == {(None, None, None)}


async def test_a_typed_publisher_writes_no_header_on_a_raw_wire(redis, topic):
    async with redis.connect(MSIGHT_WIRE="raw") as bus, bus.subscribe(topic, type=Point) as messages:
        async with bus.publisher(topic, type=Point) as publisher:
            await publisher.send(Point(1.0))
            with pytest.raises(HeaderError):
                await publisher.send(Point(1.0), headers={"lens": "wide"})
        (message,) = await take(messages, 1)
    assert (message.data, message.headers) == (Point(1.0), {})


async def test_raw_wire_is_readable_by_other_makes(redis, topic):
    async with redis.connect(MSIGHT_WIRE="raw") as bus, client_of(redis) as client:
        assert not bus.capabilities.tail_loss
        async with client.pubsub() as foreign, redis.connect() as other, other.subscribe(topic) as messages:
            await foreign.subscribe(topic)
            await foreign.get_message(timeout=5)
            await bus.publish(topic, b"exactly this")
            assert (await foreign.get_message(timeout=5))["data"] == b"exactly this"
            assert (await take(messages, 1))[0].payload == b"exactly this"
        with pytest.raises(HeaderError, match="MSIGHT_WIRE"):
            await bus.publish(topic, b"", headers={"a": "b"})
        with pytest.raises(HeaderError, match="MSIGHT_WIRE"):
            await bus.publish(topic, b"", key="k")


async def test_a_unix_socket_is_as_good(tmp_path, topic):
    path = tmp_path / "redis.sock"
    with brokers.start("redis", config=[f"unixsocket {path}"]):
        backend = Backend("redis", {"MSIGHT_REDIS_MESSAGE_BROKER_UNIX_SOCKET_PATH": str(path)})
        async with backend.connect() as bus, bus.subscribe(topic) as messages:
            await bus.publish(topic, b"through the file system")
            assert (await take(messages, 1))[0].payload == b"through the file system"


async def test_the_limit_follows_the_servers_output_buffer(topic):
    with brokers.start("redis", config=["client-output-buffer-limit pubsub 1mb 256kb 60"]) as broker:
        async with Backend("redis", dict(broker.env)).connect() as bus:
            assert bus.capabilities.max_message_bytes == 1024 * 1024 - 1024


async def test_several_subscriptions_of_one_topic_share_a_channel(redis, topic):
    async with redis.connect() as bus, bus.subscribe(topic) as first:
        async with bus.subscribe(topic) as second:
            await bus.publish(topic, b"1")
            assert [m.payload for m in await take(first, 1) + await take(second, 1)] == [b"1", b"1"]
        await bus.publish(topic, b"2")
        assert (await take(first, 1))[0].payload == b"2"
        assert second.stats.received == 1


async def test_subscriptions_of_one_topic_that_are_closed_at_once_leave_none_behind(redis, topic):
    async with redis.connect() as bus, client_of(redis) as client:
        both = [bus.subscribe(topic) for _ in range(2)]
        for subscription in both:
            await subscription.__aenter__()
        assert await client.pubsub_numsub(topic) == [(topic.encode(), 1)]
        await asyncio.gather(*(subscription.close() for subscription in both))
        assert await client.pubsub_numsub(topic) == [(topic.encode(), 0)]
        async with bus.subscribe(topic) as again:
            await bus.publish(topic, b"1")
            assert (await take(again, 1))[0].payload == b"1"


async def test_a_pattern_counts_channels_of_any_length(redis, topic):
    """A subscriber by name never receives them; anybody could end the connection of a subscriber by pattern."""
    async with redis.connect() as bus, bus.subscribe(f"{topic}.*") as messages, client_of(redis) as client:
        for size in (300, 70_000, 3_000_000):
            await client.publish(f"{topic}.{'x' * size}", b"raw")
            await client.publish(f"{topic}.{'x' * size}", framed(b"ours"))
        await bus.publish(f"{topic}.a", b"valid")
        (message,) = await take(messages, 1)
        assert (message.topic, messages.stats.dropped, messages.stats.gaps) == (f"{topic}.a", {"invalid topic": 6}, 0)


async def test_hundreds_of_topics_on_one_bus(redis, topic):
    names = [f"{topic}.{i}" for i in range(300)]
    async with redis.connect() as bus:
        subscriptions = [bus.subscribe(name) for name in names]
        await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
        for name in names:
            await bus.publish(name, name.encode())
        for name, subscription in zip(names, subscriptions, strict=True):
            assert (await take(subscription, 1))[0].payload == name.encode()
        for subscription in subscriptions:
            await subscription.close()


async def test_an_extension_that_cannot_be_read_makes_a_raw_payload(redis, topic):
    data = envelope.prefix(1, 2, 3, b"\x93\x01") + b"payload"
    async with redis.connect() as bus, bus.subscribe(topic) as messages, client_of(redis) as client:
        await client.publish(topic, data)
        (message,) = await take(messages, 1)
    assert (message.payload, message.sequence) == (data, None)


async def test_a_prefix_of_zeros_makes_a_raw_payload(redis, topic):
    data = envelope.prefix(0, 0, 0, b"") + b"payload"
    async with redis.connect() as bus, bus.subscribe(topic) as messages, client_of(redis) as client:
        for _ in range(2):
            await client.publish(topic, data)
        first, second = await take(messages, 2)
        assert (messages.stats.duplicates, messages.stats.missing) == (0, 0)
    for message in (first, second):
        assert (message.payload, message.session, message.sequence, message.published_at) == (data, None, None, None)


async def test_a_key_that_a_subscriber_would_not_read_is_refused(redis, topic):
    async with redis.connect() as bus, bus.subscribe(topic) as messages:
        with pytest.raises(HeaderError, match="on Redis"):
            await bus.publish(topic, b"", key="k" * envelope.MAX_EXTENSION_BYTES)
        await bus.publish(topic, b"x", key="k" * 1000)
        (message,) = await take(messages, 1)
        assert message.sequence == 1


async def test_a_refused_pattern_names_the_permission_that_redis_requires():
    """(redis 9225) Redis compares a pattern with those of the ACL as text: ``&camera.*`` does not permit ``camera.*.raw``."""
    with own_broker("redis", ["user default on nopass ~* resetchannels &camera.* +@all"]) as (_, redis):
        async with redis.connect() as bus:
            for entry in ("camera.>", "camera.*", ["camera.ne", "camera.sw.raw"]):
                async with bus.subscribe(entry):
                    pass
            for entry, glob in (
                ("camera.*.raw", "camera.*.raw"),
                ("camera.ne.>", "camera.ne.*"),
                (["camera.ne", ">"], "*"),
            ):
                with pytest.raises(AuthenticationError) as caught:
                    await bus.subscribe(entry).__aenter__()
                assert f"'&{glob}'" in str(caught.value)
            with pytest.raises(AuthenticationError) as caught:
                await bus.subscribe("lidar.ne").__aenter__()
            assert "&" not in str(caught.value)
