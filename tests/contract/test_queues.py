"""A consumer slower than its stream: what each policy keeps, drops and counts."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import QueuePolicy
from tests.support.brokers import make_backend
from tests.support.receiving import take

N = 300


async def fill(bus, topic, messages, n=N):
    for i in range(n):
        await bus.publish(topic, b"%d" % i)
    async with asyncio.timeout(20):
        while messages.stats.received < n:
            await asyncio.sleep(0.005)


async def test_drop_oldest_keeps_the_newest(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.drop_oldest(10)) as messages:
        await fill(bus, topic, messages)
        assert messages.stats.dropped == {"drop_oldest": N - 10}
        assert [int(m.payload) for m in await take(messages, 10)] == list(range(N - 10, N))


async def test_drop_newest_keeps_the_oldest(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.drop_newest(10)) as messages:
        await fill(bus, topic, messages)
        assert messages.stats.dropped == {"drop_newest": N - 10}
        assert [int(m.payload) for m in await take(messages, 10)] == list(range(10))


async def test_latest_keeps_the_last(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.latest(1)) as messages:
        await fill(bus, topic, messages)
        dropped = messages.stats.dropped
        assert sum(dropped.values()) == N - 1
        # On Kafka, a first fetch of several records continues with the latest one.
        assert set(dropped) <= ({"latest", "skipped"} if backend.name == "kafka" else {"latest"})
        assert messages.stats.queued_peak == 1
        assert [int(m.payload) for m in await take(messages, 1)] == [N - 1]


async def test_block_holds_the_stream_back_and_loses_nothing_to_a_slow_consumer(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.block(10)) as messages:

        async def publish():
            for i in range(N):
                await bus.publish(topic, b"%d" % i)

        publishing = asyncio.create_task(publish())
        received = []
        async with asyncio.timeout(20):
            while len(received) < N:
                received += await take(messages, 1)
                await asyncio.sleep(0)
        await publishing
        assert [int(m.payload) for m in received] == list(range(N))
        assert messages.stats.dropped == {}
        if bus.capabilities.persistence:  # elsewhere one read may hold more
            assert messages.stats.queued_peak <= 10


@pytest.mark.parametrize("name", ["redis", "nats"])
async def test_what_one_read_brings_over_the_bound_counts_as_queued(name, topic):
    backend = make_backend(name)
    async with (
        backend.connect(MSIGHT_BLOCK_TIMEOUT="30") as bus,
        backend.connect() as other,
        bus.subscribe(topic, queue=QueuePolicy.block(10)) as messages,
    ):
        async with other.publisher(topic) as publisher:  # written together, so that they are read together
            for i in range(N):
                await publisher.send(b"%d" % i)
        async with asyncio.timeout(20):
            while (stats := messages.stats).queued <= 10:
                await asyncio.sleep(0.01)
        assert stats.queued_peak >= stats.queued
        received = [int(message.payload) for message in await take(messages, N)]
        assert received == list(range(N))
        assert messages.stats.queued == 0
        assert messages.stats.queued_peak >= stats.queued_peak


async def test_every_message_received_is_queued_or_handed_out_or_dropped(backend, topic):
    """At each look, whatever a paused read brought; and the peak is never below what is queued."""

    def check():
        stats = messages.stats
        assert stats.received == stats.delivered + stats.queued + sum(stats.dropped.values())
        assert stats.queued <= stats.queued_peak

    async with backend.connect() as bus, bus.subscribe(topic, queue=QueuePolicy.block(10)) as messages:

        async def publish():
            for i in range(N):
                await bus.publish(topic, b"%d" % i)

        publishing = asyncio.create_task(publish())
        for _ in range(N):
            await take(messages, 1)
            check()
            await asyncio.sleep(0)
        await publishing
        check()


async def test_block_waits_for_ever_on_a_log_and_gives_up_on_a_live_stream(backend, topic):
    async with (
        backend.connect(MSIGHT_BLOCK_TIMEOUT="0.05") as bus,
        backend.connect() as other,
        bus.subscribe(topic, queue=QueuePolicy.block(10)) as messages,
    ):
        for i in range(N):
            await other.publish(topic, b"%d" % i)
        if bus.capabilities.persistence:
            assert [int(m.payload) for m in await take(messages, N)] == list(range(N))
            assert messages.stats.dropped == {}
            return
        async with asyncio.timeout(20):
            while sum(messages.stats.dropped.values()) < N - 10:
                await asyncio.sleep(0.01)
        assert messages.stats.dropped == {"block_timeout": N - 10}
        assert [int(m.payload) for m in await take(messages, 10)] == list(range(10))
        await other.publish(topic, b"fresh")  # once there is room the stream goes on
        assert (await take(messages, 1))[0].payload == b"fresh"


async def test_the_byte_bound_holds_and_an_empty_queue_admits_one(backend, topic):
    policy = QueuePolicy.drop_oldest(100, max_bytes=1000)
    async with backend.connect() as bus, bus.subscribe(topic, queue=policy) as messages:
        for size in (600, 600, 5000):
            await bus.publish(topic, bytes(size))
        async with asyncio.timeout(20):
            while messages.stats.received < 3:
                await asyncio.sleep(0.005)
        assert messages.stats.dropped == {"drop_oldest": 2}
        assert len((await take(messages, 1))[0].payload) == 5000


async def test_a_slow_subscriber_leaves_others_untouched(backend, topic):
    async with (
        backend.connect() as bus,
        bus.subscribe(topic, queue=QueuePolicy.latest(1)) as slow,
        bus.subscribe(topic, queue=QueuePolicy.drop_oldest(N)) as quick,
    ):
        await fill(bus, topic, quick)
        assert [int(m.payload) for m in await take(quick, N)] == list(range(N))
        await take(slow, 1)
        assert quick.stats.dropped == {}


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_queue_without_room_is_refused(wrong):
    with pytest.raises(ValueError, match="max_messages"):
        QueuePolicy.block(wrong)
    with pytest.raises(ValueError, match="max_bytes"):
        QueuePolicy.latest(1, max_bytes=wrong)


async def test_max_bytes_bounds_headers_and_keys_too(backend, topic):
    headers = {f"name-{i}": "x" * 200 for i in range(50)}
    policy = QueuePolicy.drop_oldest(10_000, max_bytes=100_000)
    async with backend.connect() as bus, bus.subscribe(topic, queue=policy) as messages:
        for _ in range(100):
            await bus.publish(topic, b"", headers=headers, key="k" * 100)
        async with asyncio.timeout(20):
            while messages.stats.received < 100:
                await asyncio.sleep(0.005)
        assert messages.stats.queued <= 10
