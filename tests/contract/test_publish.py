"""Publishing: messages arrive as they were published, and an invalid message is refused before anything is sent."""

from __future__ import annotations

import asyncio

import pytest

import msight_bus
from msight_bus import (
    BytesData,
    ClosedError,
    HeaderError,
    MessageTooLargeError,
    PayloadError,
    QueuePolicy,
    TopicError,
)
from tests.support.receiving import take

EVERY_BYTE = bytes(range(256)) * 4


async def test_a_message_arrives_as_it_was_published(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, EVERY_BYTE, key="lane 3\r\n", headers={"traceparent": "00-ab-cd-01", "x": "ü ñ"})
        (message,) = await take(messages, 1)
    assert message.topic == topic
    assert message.payload == EVERY_BYTE
    assert type(message.payload) is bytes
    assert dict(message.headers) == {"traceparent": "00-ab-cd-01", "x": "ü ñ"}
    assert message.key == "lane 3\r\n"
    assert message.sequence == 1
    assert 0 <= message.received_at - message.published_at < 20


async def test_no_headers_and_no_key_are_empty_and_none(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"")
        (message,) = await take(messages, 1)
    assert (message.payload, dict(message.headers), message.key) == (b"", {}, None)


async def test_an_empty_key_is_a_key(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"x", key="")
        (message,) = await take(messages, 1)
    assert message.key == ""


async def test_buffers_are_copied_when_published(backend, topic):
    buffer = bytearray(b"before")
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        sent = [asyncio.ensure_future(bus.publish(topic, data)) for data in (buffer, memoryview(buffer)[:3])]
        await asyncio.sleep(0)
        buffer[:] = b"after!"
        await asyncio.gather(*sent)
        received = await take(messages, 2)
    assert [message.payload for message in received] == [b"before", b"bef"]


async def test_data_arrives_with_its_type(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, BytesData(sensor_name="radar_1", data=b"\x00\xff"))
        (message,) = await take(messages, 1)
    assert isinstance(message.data, BytesData)
    assert (message.data.sensor_name, message.data.data) == ("radar_1", b"\x00\xff")
    assert message.data is message.data


async def test_one_publishers_order_holds(backend, topic):
    n = 3000
    async with backend.connect() as bus, bus.subscribe(topic, queue=msight_bus.QueuePolicy.block()) as messages:

        async def publish():
            async with bus.publisher(topic) as publisher:
                for i in range(n):
                    await publisher.send(b"%d" % i)

        publishing = asyncio.create_task(publish())
        received = await take(messages, n)
        await publishing
    assert [int(message.payload) for message in received] == list(range(n))
    assert [message.sequence for message in received] == list(range(1, n + 1))


async def test_concurrent_publishes_keep_the_order_in_which_they_were_called(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        await asyncio.gather(*(bus.publish(topic, b"%d" % i) for i in range(500)))
        received = await take(messages, 500)
    assert [message.sequence for message in received] == list(range(1, 501))
    if backend.name != "memory":
        assert [int(message.payload) for message in received] == list(range(500))


async def test_messages_of_one_size_that_differ_in_their_headers_arrive_whole(backend, topic):
    sent = [(b"p" * payload, {"x": "h" * header}) for payload, header in [(300, 100), (100, 300), (200, 200)] * 3]
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        for payload, headers in sent:
            await bus.publish(topic, payload, headers=headers)
        received = await take(messages, len(sent))
    assert [(message.payload, dict(message.headers)) for message in received] == sent


async def test_a_large_frame_arrives_whole(backend, topic):
    frame = EVERY_BYTE * 900  # 921 600 bytes, a LiDAR sweep, under every broker's default limit
    async with backend.connect() as bus, bus.subscribe(topic) as messages:
        for _ in range(3):
            await bus.publish(topic, frame)
        received = await take(messages, 3)
    assert [message.payload for message in received] == [frame] * 3


async def test_a_message_that_is_too_large_is_refused_before_sending_and_the_connection_stays_open(backend, topic):
    async with backend.connect(MSIGHT_MAX_MESSAGE_BYTES="50000000") as bus, bus.subscribe(topic) as messages:
        limit = bus.capabilities.max_message_bytes
        with pytest.raises(MessageTooLargeError) as caught:
            await bus.publish(topic, bytes(limit + 1))
        assert caught.value.size > caught.value.limit
        assert str(caught.value.size) in str(caught.value)
        assert str(caught.value.limit) in str(caught.value)
        await bus.publish(topic, b"still here")
        (message,) = await take(messages, 1)
    assert (message.payload, message.sequence) == (b"still here", 1)


async def test_headers_count_against_the_limit(backend, topic):
    async with backend.connect(MSIGHT_MAX_MESSAGE_BYTES="50000000") as bus:
        limit = bus.capabilities.max_message_bytes
        with pytest.raises(MessageTooLargeError):
            await bus.publish(topic, bytes(limit - 600), headers={"x": "y" * 1000})


@pytest.mark.parametrize(
    "wrong", ["", "a b", "a\r\nPUB b 1", "a..b", ".a", "a.", "ä", "_msight.nodes", "x" * 201, "a*", "a.>.b", 7, None]
)
async def test_an_invalid_topic_is_refused(backend, wrong):
    async with backend.connect() as bus:
        with pytest.raises(TopicError):
            await bus.publish(wrong, b"")
        with pytest.raises(TopicError):
            bus.subscribe(wrong)
        with pytest.raises(TopicError):
            bus.publisher(wrong)


@pytest.mark.parametrize("wrong", ["text", None, 3, ["a"], {"a": 1}])
async def test_a_payload_that_is_neither_bytes_nor_data_is_refused(backend, topic, wrong):
    async with backend.connect() as bus:
        with pytest.raises(PayloadError, match=type(wrong).__name__):
            await bus.publish(topic, wrong)


@pytest.mark.parametrize("wrong", [{"a b": "c"}, {"a": "c\r\nd"}, {"": "c"}, {"msight": "c"}, {"a": 1}, {"a:": "b"}])
async def test_a_header_that_could_carry_protocol_is_refused(backend, topic, wrong):
    async with backend.connect() as bus:
        with pytest.raises(HeaderError):
            await bus.publish(topic, b"", headers=wrong)


async def test_publishing_after_close_is_refused(backend, topic):
    async with backend.connect() as bus:
        publisher = bus.publisher(topic)
        await publisher.__aenter__()
    with pytest.raises(ClosedError):
        await bus.publish(topic, b"")
    with pytest.raises(ClosedError):
        await publisher.send(b"")
    with pytest.raises(ClosedError):
        bus.subscribe(topic)


async def test_a_publisher_that_was_not_entered_raises_with_its_usage(backend, topic):
    async with backend.connect() as bus:
        with pytest.raises(ClosedError, match=r"not entered; use it inside `async with bus\.publisher\("):
            await bus.publisher(topic).send(b"")
        with pytest.raises(TypeError, match=r"^Publish with `async with bus\.publisher\("):
            await bus.publisher(topic)


async def test_messages_published_just_before_closing_arrive(backend, topic):
    async with backend.connect() as listening, listening.subscribe(topic) as messages:
        async with backend.connect() as bus:
            for i in range(200):
                await bus.publish(topic, b"%d" % i)
        received = await take(messages, 200)
    assert [int(message.payload) for message in received] == list(range(200))


async def test_a_publisher_bounds_the_messages_in_flight(backend, topic):
    async with backend.connect() as bus, bus.publisher(topic, max_in_flight=7) as publisher:
        for _ in range(300):
            await publisher.send(b"x")
            assert publisher.in_flight <= 7
    assert publisher.in_flight == 0
    with pytest.raises(ValueError, match="max_in_flight"):
        bus.publisher(topic, max_in_flight=0)


async def test_tasks_that_share_a_publisher_all_make_progress(backend, topic):
    async with backend.connect(MSIGHT_PUBLISH_TIMEOUT="5") as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic, max_in_flight=1) as publisher:
            await publisher.send(b"0")
            await publisher.flush()
            await asyncio.gather(*(publisher.send(b"%d" % i) for i in range(1, 20)))
        received = await take(messages, 20)
    assert sorted(int(message.payload) for message in received) == list(range(20))


async def test_messages_of_concurrent_tasks_keep_the_order_in_which_they_were_published(backend, topic):
    """Also if some have to wait, as all do at the first use of a topic on Kafka."""
    payloads = [b"%d" % i + bytes(30_000) for i in range(60)]
    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.drop_oldest(200)) as messages:
        async with bus.publisher(topic, max_in_flight=7) as publisher:
            await asyncio.gather(*(publisher.send(payload) for payload in payloads))
        await asyncio.gather(*(bus.publish(topic, payload) for payload in payloads))
        assert [message.payload for message in await take(messages, 120)] == [*payloads, *payloads]


async def test_messages_of_concurrent_tasks_on_a_new_topic(backend, topic):
    async with backend.connect() as bus:
        await asyncio.gather(*(bus.publish(topic, b"%d" % i) for i in range(30)))
        if bus.capabilities.replay:
            async with bus.subscribe(topic, start="earliest") as messages:
                assert [message.payload for message in await take(messages, 30)] == [b"%d" % i for i in range(30)]


@pytest.mark.parametrize("way", ["publish", "publisher"])
async def test_a_message_does_not_overtake_waiting_messages(backend, topic, way):
    """Two calls of publish start in each iteration, some of them when earlier calls can continue and have not run yet."""
    payloads = [b"%d" % i + bytes(150_000) for i in range(60)]
    async with (
        backend.connect() as bus,
        bus.subscribe(topic, queue=QueuePolicy.drop_oldest(200)) as messages,
        bus.publisher(topic, max_in_flight=7) as publisher,
        asyncio.TaskGroup() as tasks,
    ):
        await bus.publish(topic, b"first")
        for i, payload in enumerate(payloads):
            tasks.create_task(publisher.send(payload) if way == "publisher" else bus.publish(topic, payload))
            if i % 2:
                await asyncio.sleep(0)
        received = await take(messages, 61)
    assert [message.payload[:9] for message in received] == [b"first", *(payload[:9] for payload in payloads)]


@pytest.mark.parametrize("way", ["publish", "publisher"])
async def test_a_waiting_message_that_is_refused_does_not_block_the_next(backend, topic, way):
    variables = {"MSIGHT_MAX_MESSAGE_BYTES": "500000", "MSIGHT_PUBLISH_TIMEOUT": "5"}
    large, small, too_large = bytes(400_000), b"small", bytes(600_000)
    async with (
        backend.connect(**variables) as bus,
        bus.subscribe(topic) as messages,
        bus.publisher(topic) as publisher,
    ):
        send = publisher.send if way == "publisher" else lambda payload: bus.publish(topic, payload)
        in_order = [large, small, too_large, small, too_large, small]
        outcomes = await asyncio.gather(*(send(payload) for payload in in_order), return_exceptions=True)
        errors = [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
        assert errors == [MessageTooLargeError] * 2
        received = await take(messages, 4)
    assert [message.payload for message in received] == [large, small, small, small]
