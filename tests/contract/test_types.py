"""Typed topics: what is sent, what arrives, and what happens to payloads of another type."""

from __future__ import annotations

import msgspec
import pytest

from msight_bus import BytesData, ConfigError, Data, DecodeError, HeaderError, PayloadError
from tests.support.receiving import take
from tests.support.typed import DECODED, HOSTILE, NAMES, TYPES, WRONG, FastTrack, Point, Track

named = pytest.mark.parametrize("name", NAMES)


@named
async def test_a_value_arrives_as_its_type(backend, topic, name):
    kind, value, content_type = TYPES[name]
    async with backend.connect() as bus, bus.subscribe(topic, type=kind) as messages:
        async with bus.publisher(topic, type=kind) as publisher:
            await publisher.send(value, key="k")
        (message,) = await take(messages, 1)
    assert message.data == value
    assert type(message.data) is type(value)
    assert message.data is message.data
    assert message.headers == ({} if content_type is None else {"content-type": content_type})
    assert message.key == "k"
    assert message.view == message.payload
    assert message.view.readonly


@named
async def test_a_value_of_another_type_is_refused_and_nothing_is_sent(backend, topic, name):
    kind, value, _ = TYPES[name]
    async with backend.connect() as bus, bus.subscribe(topic, type=kind) as messages:
        async with bus.publisher(topic, type=kind) as publisher:
            with pytest.raises(PayloadError, match=type(WRONG[name]).__name__):
                await publisher.send(WRONG[name])
            await publisher.send(value)
        (message,) = await take(messages, 1)
    assert message.sequence == 1


@pytest.mark.parametrize("name", DECODED)
async def test_a_hostile_payload_is_an_error_of_its_message_only(backend, topic, name):
    kind, value, _ = TYPES[name]
    async with backend.connect() as bus, bus.subscribe(topic, type=kind) as messages:
        async with bus.publisher(topic, type=kind) as publisher:
            for payload in HOSTILE.values():
                await bus.publish(topic, payload)
            await publisher.send(value)
        *hostile, good = await take(messages, len(HOSTILE) + 1)
    assert [message.payload for message in hostile] == list(HOSTILE.values())
    for message in hostile:
        for _ in range(2):
            with pytest.raises(DecodeError, match=rf"^The message on '{topic}' cannot be decoded as ") as caught:
                _ = message.data
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()
    assert good.data == value


async def test_a_trailing_byte_is_refused(backend, topic):
    payload = msgspec.msgpack.encode(Point(1.5))
    async with backend.connect() as bus, bus.subscribe(topic, type=Point) as messages:
        await bus.publish(topic, payload + b"\xc0")
        await bus.publish(topic, payload)
        wrong, right = await take(messages, 2)
    with pytest.raises(DecodeError, match=r"cannot be decoded as Point: .*trailing"):
        _ = wrong.data
    assert right.data == Point(1.5)


async def test_a_users_own_content_type_wins_and_decoding_follows_the_type(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, type=Point) as messages:
        async with bus.publisher(topic, type=Point) as publisher:
            await publisher.send(Point(1.0), headers={"Content-Type": "application/json"})
            await publisher.send(Point(2.0), headers={"lens": "wide"})
            with pytest.raises(HeaderError):
                await publisher.send(Point(2.0), headers={"a b": "c"})
            with pytest.raises(HeaderError):
                await publisher.send(Point(2.0), headers="content-type")
        first, second = await take(messages, 2)
    assert (first.headers, first.data) == ({"Content-Type": "application/json"}, Point(1.0))
    assert (second.headers, second.data) == ({"lens": "wide", "content-type": "application/msgpack"}, Point(2.0))


async def test_a_type_of_data_takes_its_subclasses_only(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, type=Track) as messages:
        for value in (FastTrack(speed=1.0), BytesData(data=b"x")):
            await bus.publish(topic, value)
        fast, other = await take(messages, 2)
    assert isinstance(fast.data, FastTrack)
    with pytest.raises(DecodeError, match="cannot be decoded as Track: The data is BytesData, not Track"):
        _ = other.data


async def test_lists_have_the_type_too(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, type=Point) as messages:
        async with bus.publisher(topic, type=Point) as publisher:
            for number in range(5):
                await publisher.send(Point(number))
        received = []
        async for batch in messages.batches(10):
            received += [message.data.x for message in batch]
            if len(received) == 5:
                break
    assert received == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_decoding_is_bounded_by_the_settings(backend, topic):
    limits = {"MSIGHT_MAX_NESTING": "3", "MSIGHT_MAX_DECODED_BYTES": "1000"}
    values = [Point(1.0, notes=[[1]]), Point(1.0, notes=[[[1]]]), Point(1.0, notes=[None] * 500)]
    async with backend.connect(**limits) as bus, bus.subscribe(topic, type=Point) as messages:
        async with bus.publisher(topic, type=Point) as publisher:
            for value in values:
                await publisher.send(value)
        good, deep, large = await take(messages, 3)
    assert good.data == values[0]
    with pytest.raises(DecodeError, match="MSIGHT_MAX_NESTING"):
        _ = deep.data
    with pytest.raises(DecodeError, match="MSIGHT_MAX_DECODED_BYTES"):
        _ = large.data


class Unresolved(Data):
    value: NotDefinedAnywhere  # noqa: F821


@pytest.mark.parametrize(
    "kind", [int, "Point", Point(1.0), list[int], Point | Track, Track | None, None.__class__, Unresolved], ids=str
)
async def test_what_is_no_type_of_a_topic_is_an_error_at_the_call(backend, topic, kind):
    async with backend.connect() as bus:
        for call in (bus.subscribe, bus.publisher):
            with pytest.raises((TypeError, ConfigError), match=r"Json\[\.\.\.\]|Unresolved\.value"):
                call(topic, type=kind)
