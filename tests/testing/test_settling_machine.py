"""Whatever is acknowledged, given back, taken away and crashed, in any order: nothing is committed that was not processed.

The subscription and what keeps Kafka's acknowledgements (`Partition`, `PartitionLedger`) over a log of two partitions in memory.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from msight_bus import QueuePolicy
from msight_bus.backends.base import Selection
from msight_bus.backends.kafka.partition import Partition
from msight_bus.message import Message
from msight_bus.settings import Limits
from msight_bus.subscription import Subscription, SubscriptionOptions
from msight_bus.testing import VirtualClockLoop
from tests.support.searches import EXAMPLES

MAX_REDELIVERIES = 2
partitions = st.integers(0, 1)
some = st.integers(1, 8)


class Log:
    """Two partitions, one group with one member (backends.base.Backend and Consumer)."""

    capabilities = SimpleNamespace(persistence=True, load_balancing=True)

    def __init__(self):
        self.records = [[], []]
        self.committed = [0, 0]
        self.owned = []
        self.dead = set()
        self.paused = False

    async def subscribe(self, selection, inbox):
        self.inbox = inbox
        self.paused = False
        self.assign()
        return self

    def assign(self):
        self.owned = [
            Partition(
                TopicPartition("t", i),
                self.committed[i],
                self.inbox,
                MAX_REDELIVERIES,
                self.bury,
                moment=None,
                latest=0,
                waits=False,
                reads_committed=True,
            )
            for i in (0, 1)
        ]

    async def bury(self, message):
        self.dead.add(message.position)

    def fetch(self, number, n):
        owned = self.owned[number]
        start = owned.ledger.expected
        found = [
            Message("t", payload, offset=offset, _settlement=owned)
            for offset, payload in enumerate(self.records[number][start : start + n], start)
        ]
        if found and not self.paused:
            self.inbox.stream("t").deliver(owned.deliver(found))

    @property
    def lag(self):
        return None

    def lose(self):
        for owned in self.owned:
            owned.owned = False

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    async def commit(self):
        for owned in self.owned:
            if owned.owned:
                self.committed[owned.partition] = owned.ledger.finished

    async def stop(self):
        pass

    async def close(self):
        await self.commit()
        self.lose()


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualClockLoop)
        self.log = Log()
        self.done = set()  # positions whose processing has ended
        self.hands = []  # what the consumer was given and has not finished
        self.late = []  # what it still holds of partitions that it lost
        self.dropped = 0

    @initialize(
        ack=st.sampled_from(["auto", "manual"]),
        queue=st.builds(QueuePolicy, st.sampled_from(["block", "drop_oldest", "drop_newest"]), st.integers(1, 10)),
    )
    def configure(self, ack, queue):
        self.ack, self.queue = ack, queue
        self.open()

    def open(self):
        self.messages = Subscription(
            self.log,
            Selection(("t",), "g", self.queue, "latest"),
            SubscriptionOptions(self.ack),
            limits=Limits(),
            clock=time.time,
            check=lambda: None,
            report=lambda event: None,
            on_entered=lambda subscription: None,
            on_closed=lambda subscription: None,
        )
        self.runner.run(self.messages.__aenter__())

    def finish(self, message):
        self.done.add(message.position)

    # -- the log

    @rule(number=partitions, n=some)
    def publish_and_fetch(self, number, n):
        self.log.records[number] += [b"x"] * n
        self.log.fetch(number, n)

    @rule(number=partitions, n=some)
    def fetch(self, number, n):
        self.log.fetch(number, n)

    @rule()
    def commit(self):
        self.runner.run(self.messages.commit())

    @rule()
    def rebalance(self):
        """The partitions go and come back, from what was committed."""
        self.runner.run(self.log.commit())
        self.log.lose()
        self.log.inbox.discard(lambda message: not message._settlement.owned, "revoked")
        self.late, self.hands = self.hands, []
        self.log.assign()

    @rule(crash=st.booleans())
    def start_again(self, crash):
        if crash:
            self.log.lose()
        self.runner.run(self.messages.close())
        self.count_drops()
        self.late, self.hands = self.hands, []
        self.open()

    def count_drops(self):
        causes = self.messages.stats.dropped
        self.dropped += sum(n for cause, n in causes.items() if cause not in ("revoked", "closed"))

    # -- the consumer

    def ask(self):
        """Asking for more says that what was given before is done."""
        if self.ack == "auto":
            for message in self.hands:
                self.finish(message)
            self.hands = []

    @rule()
    def take(self):
        if self.messages.stats.queued:
            self.ask()
            self.hands.append(self.runner.run(anext(self.messages)))

    @rule(n=some)
    def take_a_list(self, n):
        if self.messages.stats.queued:
            self.ask()
            self.hands += self.runner.run(self.messages.next_batch(n, 0.0))

    @rule()
    def ask_and_be_cancelled(self):
        async def ask():
            async with asyncio.timeout(1):
                await anext(self.messages)

        if not self.messages.stats.queued:
            self.ask()
            try:
                self.runner.run(ask())
            except TimeoutError:
                pass

    @rule()
    def iterate_anew(self):
        async def anew():
            aiter(self.messages)

        self.runner.run(anew())
        if self.ack == "auto":
            self.hands = []

    @rule(which=st.integers(0, 9))
    def acknowledge(self, which):
        if self.hands:
            message = self.hands.pop(which % len(self.hands))
            self.runner.run(message.ack())
            self.finish(message)

    @rule(which=st.integers(0, 9))
    def give_back(self, which):
        if self.hands:
            self.runner.run(self.hands.pop(which % len(self.hands)).nack())

    @rule()
    def settle_late(self):
        """What was lost to a rebalance is acknowledged, or given back, by a handler that did not know."""
        for i, message in enumerate(self.late):
            self.runner.run(message.ack() if i % 2 else message.nack())

    # -- what holds

    @invariant()
    def nothing_is_committed_that_was_not_processed(self):
        waiting = [*self.log.inbox.queue.messages, *self.hands]
        for owned in self.log.owned:
            committable = owned.ledger.finished
            assert self.log.committed[owned.partition] <= committable
            assert all(m.offset >= committable for m in waiting if m._settlement is owned)
            if self.queue.when_full == "block":
                assert {(owned.partition, i) for i in range(committable)} <= self.done | self.log.dead

    @invariant()
    def nothing_is_handed_out_that_comes_elsewhere(self):
        assert all(message._settlement.owned for message in self.log.inbox.queue.messages)

    def teardown(self):
        """In the end every record was processed, dead-lettered or dropped by the policy, and all is committed."""
        try:
            ends = [len(records) for records in self.log.records]
            while [owned.ledger.finished for owned in self.log.owned] != ends:
                before = [owned.ledger.finished for owned in self.log.owned]
                for number in (0, 1):
                    self.log.fetch(number, 1)
                while self.messages.stats.queued:
                    self.take()
                while self.hands:
                    self.acknowledge(0)
                assert [owned.ledger.finished for owned in self.log.owned] > before
            self.count_drops()
            every = {(number, i) for number in (0, 1) for i in range(ends[number])}
            assert len(every - self.done - self.log.dead) <= self.dropped
        finally:
            self.runner.close()


TestSettling = Machine.TestCase
TestSettling.settings = settings(max_examples=EXAMPLES, stateful_step_count=40)
TestSettling.pytestmark = [pytest.mark.timeout(400)]  # what fails is then made small
