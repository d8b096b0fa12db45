"""A slow subscriber drops by its policy, and drops are counted; other subscribers are not affected; memory is bounded."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from msight_bus import QueuePolicy
from msight_bus.events import Disconnected
from tests.support.brokers import GROUP
from tests.support.ledger import Account
from tests.support.rig import LIVE, seen, until
from tests.support.stream import Events, Sender, take_all

N = 3000
POLICIES = [QueuePolicy.drop_oldest, QueuePolicy.drop_newest, QueuePolicy.latest, QueuePolicy.block]


@asynccontextmanager
async def reading(bus, topic, ledger, *, queue=None, pause=0.0, group_id=None):
    async with bus.subscribe(topic, queue=queue, group_id=group_id) as messages:
        task = asyncio.create_task(take_all(messages, ledger, pause=pause))
        yield messages
        task.cancel()
        await asyncio.wait((task,))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("target", LIVE, indirect=True)
async def test_a_slow_subscriber_drops_by_its_policy_and_does_not_affect_others(target, policy, book, topic):
    slow_book, quick_book, other_book = book.ledgers["slow"], book.ledgers["quick"], book.ledgers["other"]
    async with (
        target.connect(events=(events := Events({})), MSIGHT_BLOCK_TIMEOUT="0.05") as bus,
        target.connect() as other,
        target.connect() as sending,
        reading(bus, topic, slow_book, queue=policy(20, max_bytes=100_000), pause=0.005) as slow,
        reading(bus, topic, quick_book) as quick,
        reading(other, topic, other_book) as elsewhere,
    ):
        sender = Sender(sending, topic, slow_book, rng := random.Random(1))
        for _ in range(N):
            await sender.send(rng.randint(0, 20_000))
        for ledger in (quick_book, other_book):
            ledger.acknowledged_to((None, 1), N, 0)
        await until(lambda: quick.stats.delivered == elsewhere.stats.delivered == slow.stats.received == N)
        await until(lambda: slow.stats.queued == 0)
        dropped = book.dropped["slow"] = sum(slow.stats.dropped.values())
        if policy.__name__ != "block":  # what is read before a connection can be paused is queued above the bound
            assert slow.stats.queued_peak <= 20
    assert quick_book.account() == other_book.account() == Account(acknowledged=N, delivered=N)
    assert dropped > 0
    assert book.account() == Account(acknowledged=3 * N, delivered=3 * N - dropped, dropped=dropped)
    assert not seen(events, Disconnected)


async def test_the_log_waits_for_a_slow_subscriber(kafka, book, topic):
    slow_book = book.ledgers[topic]
    async with kafka.connect() as bus, kafka.connect() as sending:
        queue = QueuePolicy.block(20, max_bytes=100_000)
        async with reading(bus, topic, slow_book, queue=queue, pause=0.001, group_id=GROUP) as slow:
            sender = Sender(sending, topic, slow_book, rng := random.Random(1))
            await sender.send(0)
            await asyncio.gather(*(sender.send(rng.randint(0, 20_000)) for _ in range(499)))
            await until(lambda: slow.stats.delivered == 500)
            assert slow.stats.queued_peak <= 20
            assert slow.stats.dropped == {}
    assert book.account() == Account(acknowledged=500, delivered=500)
