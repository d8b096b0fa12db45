"""Answers while a leader or a coordinator is elected: requests are sent again, with pauses."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import ConnectionLostError, PublishTimeoutError
from msight_bus.backends.kafka import topics
from msight_bus.backends.kafka.producer import choose_partition
from tests.support.brokers import GROUP
from tests.support.kafka_admin import make
from tests.support.kafka_answers import (
    DESCRIBE_GROUPS,
    METADATA,
    OFFSET_FETCH,
    OFFSETS,
    PRODUCE,
    changing_answers,
    of_partition,
    with_code,
)
from tests.support.kafka_traffic import outcomes
from tests.support.receiving import numbers, take

IDENTITY_VERSION = 10
"""Of the metadata request that asks for a topic's id."""


def without_leader(answer, topic):
    """Return a metadata response of version 5 with no leader of the topic's partition 0; each partition has one replica."""
    name = len(topic).to_bytes(2, "big") + topic.encode()
    at = answer.find(name)
    if at < 0:
        return answer
    at += len(name) + 1 + 4  # whether it is internal; number of partitions
    while answer[at + 2 : at + 6] != bytes(4):  # in any order
        at += 30  # error, number, leader, one replica, which is in sync, and none that is offline
    return answer[: at + 6] + b"\xff" * 4 + answer[at + 10 :]


async def test_a_leader_is_not_looked_up_without_a_pause(kafka, topic):
    """(librdkafka 28) Each response without a leader was followed by the next request at once."""
    asked = []
    is_away = False

    def change(request, answer):
        if request.kind == METADATA and request.version != IDENTITY_VERSION and is_away:
            asked.append(request)
            return without_leader(answer, topic)
        return answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus, kafka.connect() as other:
        async with bus.subscribe(topic) as messages:
            is_away = True
            await messages._at_broker.client.update_metadata()
            await other.publish(topic, b"0")
            await asyncio.sleep(2)
            assert 1 < len(asked) < 20
            is_away = False
            assert await numbers(messages, 1) == [0]


async def test_a_partition_without_a_leader_does_not_affect_the_others(kafka, topic, monkeypatch, caplog):
    """(kafka-python 108, sarama 213, librdkafka 1812) The broker with its only replica is down."""
    monkeypatch.setattr(topics, "_LOOK_ANEW_AFTER", 0.0)
    is_away = False
    keys = sorted(("k0", "k1", "k2", "k3"), key=lambda key: choose_partition(key.encode(), 2))
    gone, here = keys[0], keys[-1]

    def change(request, answer):
        if request.kind == METADATA and request.version != IDENTITY_VERSION and is_away:
            return without_leader(answer, topic)
        return answer

    settings = {"MSIGHT_KAFKA_CREATE_TOPICS": "false", "MSIGHT_PUBLISH_TIMEOUT": "3", "MSIGHT_CONNECT_TIMEOUT": "5"}
    await make(kafka, topic, 2)
    async with changing_answers(kafka, change) as way, way.connect(**settings) as running:
        async with running.subscribe(topic, group_id=GROUP) as messages:
            assert await outcomes(*(running.publish(topic, b"0", key=key) for key in keys)) == [None] * 4
            await take(messages, 4)
        is_away = True
        await running.core.backend._client.update_metadata()
        async with way.connect(**settings) as new:
            for bus in (running, new):
                error, none = await outcomes(*(bus.publish(topic, b"1", key=key) for key in (gone, here)))
                assert isinstance(error, PublishTimeoutError)
                assert none is None
            async with new.subscribe(topic, group_id=GROUP) as messages:
                assert here in {message.key for message in await take(messages, 2)}
            with pytest.raises(ConnectionLostError, match="partition 0"):
                await new.subscribe(topic).__aenter__()
    assert "was deleted" not in caplog.text


async def test_messages_without_a_key_are_spread_over_the_partitions_that_have_a_leader(kafka, topic):
    """(librdkafka 1812) Each second message timed out."""
    is_away = False

    def change(request, answer):
        if request.kind == METADATA and request.version != IDENTITY_VERSION and is_away:
            return without_leader(answer, topic)
        return answer

    async def publish(bus):
        return await outcomes(*(bus.publish(topic, b"0") for _ in range(4)))

    settings = {"MSIGHT_PUBLISH_TIMEOUT": "3", "MSIGHT_CONNECT_TIMEOUT": "5", "MSIGHT_KAFKA_UNKEYED": "spread"}
    await make(kafka, topic, 2)
    async with changing_answers(kafka, change) as way, way.connect(**settings) as running:
        assert await publish(running) == [None] * 4
        is_away = True
        await running.core.backend._client.update_metadata()
        assert await publish(running) == [None] * 4
        async with way.connect(**settings) as new:
            assert await publish(new) == [None] * 4
        is_away = False
        await running.core.backend._client.update_metadata()
        async with kafka.connect() as other, other.subscribe(topic) as messages:
            assert await publish(running) == [None] * 4
            assert {message.position[0] for message in await take(messages, 4)} == {0, 1}


def refusing(kind, topic, code):
    """Return a change that answers the first two requests of a kind with an error of the topic's partition, and those answers."""
    refused: list[bytes] = []

    def change(request, answer):
        if request.kind == kind and of_partition(answer, topic) >= 0 and len(refused) < 2:
            refused.append(answer)
            return with_code(answer, topic, code)
        return answer

    return change, refused


@pytest.mark.parametrize("code", [5, 6, 9, 13, 56])
async def test_start_offsets_are_asked_for_again(kafka, topic, code):
    """(librdkafka 2955, 2988, kafka 8088) LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, REPLICA_NOT_AVAILABLE, NETWORK_EXCEPTION
    and KAFKA_STORAGE_ERROR are retriable."""
    change, refused = refusing(OFFSETS, topic, code)
    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"0")
        assert await numbers(messages, 1) == [0]
    assert len(refused) == 2


@pytest.mark.parametrize("code", [6, 9, 13, 56])
async def test_a_batch_is_sent_again(kafka, topic, code):
    """(librdkafka 3026, brod 667) The same codes."""
    change, refused = refusing(PRODUCE, topic, code)
    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        for number in range(3):
            await bus.publish(topic, b"%d" % number)
        async with bus.subscribe(topic, start="earliest") as messages:
            assert await numbers(messages, 3) == [0, 1, 2]
    assert len(refused) == 2


@pytest.mark.parametrize("code", [14, 15, 16, -1])
async def test_committed_offsets_are_asked_for_again_while_the_coordinator_moves(kafka, topic, code):
    """(pykafka 958, sarama 3574, librdkafka 5586) COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR and
    UNKNOWN_SERVER_ERROR. The response has no partitions then, as that of a group without committed offsets."""
    refused = []

    def change(request, answer):
        if request.kind != OFFSET_FETCH or not is_moving or len(refused) == 2:
            return answer
        refused.append(answer)
        return answer[:8] + bytes(4) + code.to_bytes(2, "big", signed=True)  # no topics

    is_moving = False
    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"0")
            (message,) = await take(messages, 1)
            await message.ack()
        for number in range(1, 4):
            await bus.publish(topic, b"%d" % number)
        is_moving = True
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert await numbers(messages, 3) == [1, 2, 3]
    assert len(refused) == 2


async def test_the_members_of_a_group_are_asked_for_again_while_the_coordinator_moves(kafka, topic):
    """(kafka 11022, kafka_ex 598) NOT_COORDINATOR does not mean that the group has no other members."""
    asked = []

    def change(request, answer):
        if request.kind != DESCRIBE_GROUPS:
            return answer
        asked.append(answer)
        at = 12 if request.version else 8  # of the group's error code
        return answer if len(asked) > 1 else answer[:at] + (16).to_bytes(2, "big") + answer[at + 2 :]

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            await bus.publish(topic, b"0")
            assert await numbers(messages, 1) == [0]
    assert len(asked) > 1
