"""MSIGHT_PUBLISHER_TOPICS: what a bus remembers of the topics that it published on is bounded, and forgetting harms nobody."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import tracemalloc
from contextlib import asynccontextmanager

import msgspec
import pytest

import msight_bus
from msight_bus import ConfigError
from msight_bus.settings import BusSettings
from tests.support.brokers import make_backend
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.receiving import take
from tests.support.rig import LIVE, until
from tests.support.servers import variables
from tests.support.talking import settings_of

LIMIT = 10
FEW = {"MSIGHT_PUBLISHER_TOPICS": f"{LIMIT}", "MSIGHT_ANNOUNCE_INTERVAL": "0.05"}
WITHIN = 3.0
_others = itertools.count()

kinds = pytest.mark.parametrize("kind", ["memory", *LIVE])
live = pytest.mark.parametrize("kind", LIVE)


@asynccontextmanager
async def talking(kind, topic, events=None):
    """A bus that remembers few topics, and a subscription of another bus."""
    backend = make_backend(kind)
    async with backend.connect(events=events) as near, near.subscribe(topic) as messages:
        async with backend.connect(**FEW) as bus:
            yield bus, messages


async def publish_elsewhere(bus, count):
    """Publish once on each of so many topics that nobody has used before."""
    for _ in range(count):
        await bus.publish(f"elsewhere.t{next(_others)}", b"x")


async def publish_until_forgotten(bus, messages, topic, *, between=None):
    """Publish on ``topic`` and then on so many others that it has to go, until it begins a new session; all its messages."""
    seen = []
    async with asyncio.timeout(WITHIN):
        while len({message.session for message in seen}) < 2:
            await bus.publish(topic, b"x")
            seen += await take(messages, 1)
            if len({message.session for message in seen}) == 2:
                break
            for _ in range(LIMIT):
                await publish_elsewhere(bus, 3)
                if between is not None:
                    await between()
            await asyncio.sleep(0.1)  # a topic goes when its last sequence was announced
    return seen


@kinds
async def test_a_topic_that_was_forgotten_begins_a_new_session_and_nobody_is_told_of_a_loss(kind, topic):
    events: list = []
    async with talking(kind, topic, events) as (bus, messages):
        *before, first = await publish_until_forgotten(bus, messages, topic)
        await bus.publish(topic, b"x")
        (second,) = await take(messages, 1)
        assert [message.sequence for message in before] == list(range(1, len(before) + 1))
        assert (first.sequence, second.sequence) == (1, 2)
        assert second.session == first.session
        assert (messages.stats.missing, messages.stats.gaps, messages.stats.duplicates) == (0, 0, 0)
    assert not events


@kinds
async def test_the_least_recently_used_goes(kind, topic):
    backend = make_backend(kind)
    async with talking(kind, topic) as (bus, messages), backend.connect() as near:
        async with near.subscribe(f"{topic}.used") as used:
            count = 0

            async def use():
                nonlocal count
                count += 1
                await bus.publish(f"{topic}.used", b"x")

            await publish_until_forgotten(bus, messages, topic, between=use)
            received = await take(used, count)
    assert [message.sequence for message in received] == list(range(1, count + 1))
    assert len({message.session for message in received}) == 1


@kinds
async def test_a_topic_with_an_open_publisher_stays(kind, topic):
    backend, count = make_backend(kind), 2 * LIMIT
    async with talking(kind, topic) as (bus, messages), backend.connect() as near:
        async with near.subscribe(f"{topic}.held0") as held:
            publishers = [await bus.publisher(f"{topic}.held{i}").__aenter__() for i in range(count)]
            for publisher in publishers:
                await publisher.send(b"x")
            await publish_until_forgotten(bus, messages, topic)
            await publishers[0].send(b"x")
            first, second = await take(held, 2)
            for publisher in publishers:
                await publisher.__aexit__(None, None, None)
    assert (first.session, first.sequence + 1) == (second.session, second.sequence)


@kinds
async def test_one_warning_names_the_variable(kind, topic, caplog):
    with caplog.at_level(logging.WARNING, logger="msight_bus"):
        async with talking(kind, topic) as (bus, messages):
            for _ in range(2):
                await publish_until_forgotten(bus, messages, topic)
    assert sum("MSIGHT_PUBLISHER_TOPICS" in record.getMessage() for record in caplog.records) == 1


def stamp(kind, command):
    """Session and sequence of a message as they travel, and its payload."""
    if kind == "nats":
        digits = command.headers.partition(b"msight: ")[2]
        return int(digits[:16], 16), int(digits[16:32], 16), command.payload
    data = command.words[1]
    return int.from_bytes(data[8:16], "big"), int.from_bytes(data[16:24], "big"), data[32:]


def parts(value):
    """Names and numbers in a decoded value, however deep."""
    if isinstance(value, dict):
        return [part for item in value.items() for part in parts(list(item))]
    return [part for item in value for part in parts(item)] if isinstance(value, list) else [value]


@live
async def test_a_topic_is_evicted_once_its_last_sequence_was_announced(kind):
    peer = Peer(kind)

    def published(topic):
        return [
            command for command in peer.commands if command.verb in ("HPUB", "PUBLISH") and command.words[0] == topic
        ]

    async with fake(peer) as way:
        async with msight_bus.connect(settings_of(variables(kind, way.port), **FEW)) as bus:
            async with asyncio.timeout(WITHIN):
                while len({stamp(kind, command)[0] for command in published(b"a")}) < 2:
                    await bus.publish("a", b"x")
                    await publish_elsewhere(bus, 3 * LIMIT)
                    await asyncio.sleep(0.1)
            messages = published(b"a")
            old = stamp(kind, messages[0])[0]
            last = max(stamp(kind, command)[1] for command in messages if stamp(kind, command)[0] == old)
            new = next(command for command in messages if stamp(kind, command)[0] != old)
            earlier = peer.commands[: next(i for i, command in enumerate(peer.commands) if command is new)]
            announced = [
                msgspec.msgpack.decode(stamp(kind, command)[2])
                for command in earlier
                if command.verb in ("HPUB", "PUBLISH") and command.words[0] == b"_msight.seq"
            ]
    assert any({old, "a", last} <= set(parts(announcement)) for announcement in announced)


@live
async def test_topics_that_were_used_once_leave_no_memory_behind(kind):
    """100 topics are remembered; 6,000 take megabytes."""
    limits = {"MSIGHT_PUBLISHER_TOPICS": "100", "MSIGHT_ANNOUNCE_INTERVAL": "0.05"}

    def kept():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async with make_backend(kind).connect(**limits) as bus:
        await publish_elsewhere(bus, 1000)
        tracemalloc.start()
        try:
            before = kept()
            await publish_elsewhere(bus, 6_000)
            async with asyncio.timeout(20):
                while kept() > before + 1_000_000:  # 4,096 names that were checked stay known
                    async with bus.publisher("again") as publisher:  # its round trip confirms the others' messages
                        await publisher.send(b"x")
                    await asyncio.sleep(0.1)
        finally:
            tracemalloc.stop()


async def test_kafka_keeps_no_task_of_a_topic_that_was_forgotten(topic, kafka):
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS="3") as bus:
        await bus.publish(f"{topic}.first", b"x")
        tasks = len(asyncio.all_tasks())
        for i in range(8):
            await bus.publish(f"{topic}.t{i}", b"x")
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 3, within=2)
        await bus.publish(f"{topic}.first", b"again")


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_a_wrong_number_is_a_config_error(wrong):
    with pytest.raises(ConfigError, match="MSIGHT_PUBLISHER_TOPICS"):
        BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "memory", "MSIGHT_PUBLISHER_TOPICS": wrong})
