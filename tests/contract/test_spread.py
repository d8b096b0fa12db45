"""Messages without a key: in order by default, shared by a group with ``spread``."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from msight_bus import CapabilityWarning, NodeConfig, SourceNode
from tests.support.brokers import GROUP
from tests.support.receiving import take

N = 300
MEMBERS = 3
WAYS = ["publisher", "variable", "bus", "node"]


class Source(SourceNode):
    async def stream(self):
        for number in range(N):
            yield b"%d" % number


async def publish(bus, topic, way):
    """Publish numbers without a key; ``publisher`` and ``node`` ask for the spread, the others leave it to the variable."""
    if way == "node":
        await Source(NodeConfig(name="source", publish_topic_name=topic, spread=True)).run(bus)
    elif way == "bus":
        await asyncio.gather(*(bus.publish(topic, b"%d" % number) for number in range(N)))
    else:
        async with bus.publisher(topic, spread=True if way == "publisher" else None) as publisher:
            for number in range(N):
                await publisher.send(b"%d" % number, headers={"a": "b"} if number % 7 == 0 else None)


@pytest.mark.filterwarnings("ignore", category=CapabilityWarning)
@pytest.mark.parametrize("way", WAYS)
async def test_a_group_shares_spread_messages(backend, topic, way):
    variables = {"MSIGHT_KAFKA_UNKEYED": "spread"} if way in ("variable", "bus") else {}
    async with backend.connect(**variables) as bus, AsyncExitStack() as stack:
        shares = bus.capabilities.load_balancing
        subscriptions = [bus.subscribe(topic, group_id=GROUP) for _ in range(MEMBERS)]
        await asyncio.gather(*map(stack.enter_async_context, subscriptions))
        got: Counter[bytes] = Counter()
        counts = [0] * MEMBERS

        async def consume(member):
            async for message in subscriptions[member]:
                got[message.payload] += 1
                counts[member] += 1

        consumers = [asyncio.create_task(consume(member)) for member in range(MEMBERS)]
        await publish(bus, topic, way)
        async with asyncio.timeout(20):
            while len(got) < N or (not shares and sum(counts) < N * MEMBERS):
                await asyncio.sleep(0.01)
        for task in consumers:
            task.cancel()
        await asyncio.wait(consumers)
    assert set(got) == {b"%d" % number for number in range(N)}
    if shares:
        assert all(counts)


async def test_spread_keeps_the_order_within_a_partition(kafka, topic):
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic, spread=True) as publisher:
            for number in range(N):
                await publisher.send(b"%d" % number)
        received = await take(messages, N)
    by_partition: dict[int, list[int]] = {}
    for message in received:
        by_partition.setdefault(message.position[0], []).append(int(message.payload))
    assert sorted(map(len, by_partition.values())) == [N // 4] * 4
    assert all(numbers == sorted(numbers) for numbers in by_partition.values())
    assert {message.key for message in received} == {None}


@pytest.mark.parametrize(
    ("variable", "spread", "partitions"), [("spread", False, 1), ("ordered", True, 4), ("", None, 1)]
)
async def test_spread_of_a_publisher_overrides_the_variable(kafka, topic, variable, spread, partitions):
    variables = {"MSIGHT_KAFKA_UNKEYED": variable} if variable else {}
    async with kafka.connect(**variables) as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic, spread=spread) as publisher:
            for _ in range(20):
                await publisher.send(b"x")
        received = await take(messages, 20)
    assert len({message.position[0] for message in received}) == partitions


async def test_keyed_messages_keep_their_partition_with_spread(kafka, topic):
    async with kafka.connect(MSIGHT_KAFKA_UNKEYED="spread") as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic) as publisher:
            for number in range(40):
                await publisher.send(b"x", key=f"k{number % 5}" if number % 2 else None)
        received = await take(messages, 40)
    where = {(message.key, message.position[0]) for message in received if message.key is not None}
    assert len(where) == 5


async def test_publishers_of_one_topic_can_differ_in_spread(kafka, topic):
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        async with bus.publisher(topic, spread=True) as spread, bus.publisher(topic, name="cam") as ordered:
            for _ in range(20):
                await spread.send(b"spread")
                await ordered.send(b"ordered")
        received = await take(messages, 40)
    where = {
        payload: {one.position[0] for one in received if one.payload == payload} for payload in (b"spread", b"ordered")
    }
    assert (len(where[b"spread"]), len(where[b"ordered"])) == (4, 1)
