"""Promise: members of ours and of another make, confluent-kafka, share a Kafka group, and no message is lost when they join,
leave or are killed under load, in any order."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.support.commits import watched_commits
from tests.support.librdkafka import PROTOCOLS, Member
from tests.support.rig import python, until
from tests.support.stream import Sender, read, take_all

KEYS = 8
SETTINGS = {"MSIGHT_KAFKA_SESSION_TIMEOUT": "3", "MSIGHT_KAFKA_PARTITIONS": "6"}
ORDERS = [
    order
    for order in itertools.permutations(["ours joins", "ours leaves", "other joins", "other leaves"])
    if order.index("ours joins") < order.index("ours leaves")
    and order.index("other joins") < order.index("other leaves")
]


class MixedGroup:
    """Members of one group; each message that one of them has seen is in the ledger."""

    def __init__(self, kafka, topic, ledger, protocol):
        self._kafka = kafka
        self._topic = topic
        self._ledger = ledger
        self._protocol = protocol
        self._here = {}
        self.senders = []

    @asynccontextmanager
    async def ours(self):
        async with self._kafka.connect(**SETTINGS) as bus, bus.subscribe(self._topic, group_id="g") as messages:
            task = asyncio.create_task(take_all(messages, self._ledger))
            yield
            assert task.cancel(), "a member ended"
            await asyncio.wait((task,))

    @asynccontextmanager
    async def other(self):
        loop = asyncio.get_running_loop()
        options = {**PROTOCOLS[self._protocol], "auto.offset.reset": "earliest"}
        member = Member(
            self._kafka, self._topic, "g", lambda message: loop.call_soon_threadsafe(self._enter, message), **options
        )
        member.start()
        await until(lambda: member.partitions, within=40)
        yield
        await member.stop()

    @asynccontextmanager
    async def other_that_is_killed(self):
        arguments = ("other", self._topic, "g", self._protocol)
        async with python("-m", "tests.faults.peer", *arguments, env=self._kafka.env) as process:
            self._enter_line(await process.stdout.readline())
            reading = asyncio.create_task(self._read(process))
            yield
            process.kill()
            await reading

    async def _read(self, process):
        while line := await process.stdout.readline():
            self._enter_line(line)

    def _enter_line(self, line):
        key, life, number = line.decode().split()
        self._ledger.delivered((key, int(life)), int(number), time.time())

    def _enter(self, message):
        numbers = read(message.value())
        if numbers is None:
            self._ledger.damaged += 1
        else:
            self._ledger.delivered((message.key().decode(), numbers[0]), numbers[1], time.time())

    async def joins(self, who, what=None):
        """Let a member join, which is called ``who`` from then on."""
        stack = AsyncExitStack()
        await stack.enter_async_context(getattr(self, what or who)())
        self._here[who] = stack

    async def leaves(self, who):
        """Let it leave."""
        await self._here.pop(who).aclose()

    async def flows(self):
        """Wait until each key's messages flow, if anybody is there to read them."""
        if not self._here:
            return
        before = [sender.number for sender in self.senders]
        await until(
            lambda: all(self._ledger.highest((f"k{i}", 1)) > number for i, number in enumerate(before)),
            within=60,
        )

    @asynccontextmanager
    async def load(self):
        """Publish eight keys; at the end all that was acknowledged has arrived."""
        async with self._kafka.connect(**SETTINGS) as bus:
            self.senders = [Sender(bus, self._topic, self._ledger, random.Random(i)) for i in range(KEYS)]
            await asyncio.gather(*(sender.send(0, key=f"k{i}") for i, sender in enumerate(self.senders)))
            tasks = [
                asyncio.create_task(sender.run(pause=0.02, burst=3, key=f"k{i}"))
                for i, sender in enumerate(self.senders)
            ]
            try:
                yield
                for sender in self.senders:
                    sender.stop.set()
                await asyncio.wait(tasks)
                total = sum(sender.number for sender in self.senders)
                if not self._here:
                    await self.joins("ours")
                await until(lambda: self._ledger.account().delivered >= total, within=60)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for who in list(self._here):
                    await self.leaves(who)


def is_whole(account):
    return (account.silent, account.damaged, account.unknown, account.below_committed) == (0, 0, 0, 0)


@pytest.mark.timeout(170)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_members_of_two_makes_join_and_leave_in_every_order(kafka, book, topic, protocol):
    group = MixedGroup(kafka, topic, book.ledgers[topic], protocol)
    async with kafka.connect(**SETTINGS) as bus, bus.subscribe(topic, group_id="g"):
        pass  # the group has its beginning from now on
    async with group.load():
        for order in ORDERS:
            for step in order:
                who, what = step.split()
                await getattr(group, what)(who)
                await group.flows()
    assert is_whole(book.account())


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_members_of_two_makes_join_leave_and_are_killed_for_thirty_rounds(kafka, book, topic, protocol):
    """Up to three of each make, as the seed has it."""
    rng, rounds = random.Random(1), 30
    group = MixedGroup(kafka, topic, book.ledgers[topic], protocol)
    names = [f"{make} {number}" for make in ("ours", "other") for number in range(3)]
    here = set()
    async with kafka.connect(**SETTINGS) as bus, bus.subscribe(topic, group_id="g"):
        pass
    async with group.load(), watched_commits(kafka, topic, "g", book.ledgers[topic]):
        for _ in range(rounds):
            who = rng.choice(names)
            if who in here:
                await group.leaves(who)
                here.discard(who)
            else:
                make = who.split()[0]
                await group.joins(who, "other_that_is_killed" if make == "other" and rng.random() < 0.3 else make)
                here.add(who)
            began = time.monotonic()
            await group.flows()
            book.recovered.append(time.monotonic() - began)
    assert is_whole(book.account())
