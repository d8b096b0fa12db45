"""Members join and leave under load. On NATS, messages in flight are counted; on Kafka, no message is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from msight_bus import QueuePolicy
from tests.support.brokers import GROUP
from tests.support.commits import watched_commits
from tests.support.rig import until
from tests.support.stream import Sender, take_all


class Members:
    """Members of one group, each with a bus of its own, and what their queues gave up."""

    def __init__(self, backend, topic, ledger, **variables):
        self.dropped = Counter()
        self._backend = backend
        self._topic = topic
        self._ledger = ledger
        self._variables = variables

    @asynccontextmanager
    async def one_more(self, queue=None, pause=0.0):
        async with self._backend.connect(**self._variables) as bus:
            async with bus.subscribe(self._topic, group_id=GROUP, queue=queue) as messages:
                task = asyncio.create_task(take_all(messages, self._ledger, pause=pause))
                yield messages
                task.cancel()
                await asyncio.wait((task,))
            self.dropped.update(messages.stats.dropped)


async def test_nats_counts_the_messages_in_flight_to_a_leaving_member(nats, book, topic):
    ledger = book.ledgers[topic]
    members = Members(nats, topic, ledger)
    async with nats.connect() as bus, members.one_more():
        sender = Sender(bus, topic, ledger, random.Random(1))
        sending = asyncio.create_task(sender.run(pause=0.0005))
        for _ in range(5):
            async with members.one_more(QueuePolicy.drop_oldest(10_000), pause=0.01) as messages:
                await until(lambda messages=messages: messages.stats.queued > 5)
        sender.stop.set()
        await sending
        await bus.publisher(topic).flush()
        await until(lambda: ledger.account().delivered + sum(members.dropped.values()) >= sender.number)
    book.dropped[topic] = members.dropped.total()
    account = book.account()
    assert members.dropped["closed"] > 0
    assert (account.silent, account.overstated, account.duplicated, account.damaged) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [pytest.param(3, id="quick"), pytest.param(20, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(180)])],
)
async def test_kafka_loses_no_message_when_members_join_and_leave(kafka, book, topic, changes):
    ledger = book.ledgers[topic]
    members = Members(kafka, topic, ledger, MSIGHT_KAFKA_SESSION_TIMEOUT="2")
    watched = watched_commits(kafka, topic, GROUP, ledger)
    async with kafka.connect() as bus, members.one_more(), watched:
        senders = [Sender(bus, topic, ledger, random.Random(i)) for i in range(8)]
        await asyncio.gather(*(sender.send(0, key=f"k{i}") for i, sender in enumerate(senders)))
        sending = [asyncio.create_task(s.run(pause=0.02, burst=5, key=f"k{i}")) for i, s in enumerate(senders)]
        for _ in range(changes):
            async with members.one_more() as messages:
                await until(lambda messages=messages: messages.stats.delivered > 10)
        for sender in senders:
            sender.stop.set()
        await asyncio.wait(sending)
        await until(lambda: ledger.account().delivered >= sum(sender.number for sender in senders))
    account = book.account()
    assert (account.silent, account.reordered, account.damaged, account.below_committed) == (0, 0, 0, 0)
