"""A Kafka group with members of the bus and of confluent-kafka, in threads and in processes that can be killed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from confluent_kafka import Message

from tests.support.brokers import GROUP, Backend
from tests.support.ledger import Ledger
from tests.support.librdkafka import PROTOCOLS, Member
from tests.support.rig import python, until
from tests.support.stream import Sender, read, take_all

KEYS = 8
SETTINGS = {"MSIGHT_KAFKA_SESSION_TIMEOUT": "3", "MSIGHT_KAFKA_PARTITIONS": "6"}
MEMBERS = [f"{make} {number}" for make in ("ours", "other") for number in range(3)]


class MixedGroup:
    """Members of one group, which record each received message in the ledger."""

    def __init__(self, kafka: Backend, topic: str, ledger: Ledger, protocol: str) -> None:
        """``protocol``: group protocol of the members of confluent-kafka, one of `PROTOCOLS`."""
        self._kafka = kafka
        self._topic = topic
        self._ledger = ledger
        self._protocol = protocol
        self._here: dict[str, AsyncExitStack] = {}
        self.senders: list[Sender] = []

    @asynccontextmanager
    async def ours(self) -> AsyncIterator[None]:
        async with self._kafka.connect(**SETTINGS) as bus, bus.subscribe(self._topic, group_id=GROUP) as messages:
            task = asyncio.create_task(take_all(messages, self._ledger))
            yield
            assert task.cancel(), "a member ended"
            await asyncio.wait((task,))

    @asynccontextmanager
    async def other(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        options = {**PROTOCOLS[self._protocol], "auto.offset.reset": "earliest"}
        member = Member(
            self._kafka, self._topic, GROUP, lambda message: loop.call_soon_threadsafe(self._enter, message), **options
        )
        member.start()
        await until(lambda: member.partitions, within=40)
        yield
        await member.stop()

    @asynccontextmanager
    async def other_that_is_killed(self) -> AsyncIterator[None]:
        arguments = ("other", self._topic, GROUP, self._protocol)
        async with python("-m", "tests.faults.peer", *arguments, env=self._kafka.env) as process:
            begun = asyncio.Event()
            reading = asyncio.create_task(self._read(process, begun))
            with suppress(TimeoutError):  # its partitions can be without messages
                async with asyncio.timeout(10):
                    await begun.wait()
            yield
            process.kill()
            await reading

    async def _read(self, process: asyncio.subprocess.Process, begun: asyncio.Event) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            begun.set()
            self._enter_line(line)

    def _enter_line(self, line: bytes) -> None:
        key, life, number = line.decode().split()
        self._ledger.delivered((key, int(life)), int(number), time.time())

    def _enter(self, message: Message) -> None:
        numbers = read(message.value())
        if numbers is None:
            self._ledger.damaged += 1
        else:
            self._ledger.delivered((message.key().decode(), numbers[0]), numbers[1], time.time())

    async def joins(self, who: str, what: str | None = None) -> None:
        """Start a member with the name ``who``."""
        stack = AsyncExitStack()
        await stack.enter_async_context(getattr(self, what or who)())
        self._here[who] = stack

    async def leaves(self, who: str) -> None:
        """Stop a member, which leaves the group."""
        await self._here.pop(who).aclose()

    async def flows(self) -> None:
        """Wait until messages of each key are received, if there are members."""
        if not self._here:
            return
        before = [sender.number for sender in self.senders]
        await until(
            lambda: all(self._ledger.highest((f"k{i}", 1)) > number for i, number in enumerate(before)),
            within=60,
        )

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish eight keys; at the end, wait until all acknowledged messages are received."""
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

    async def change(self, rng: random.Random) -> None:
        """Start, stop or kill one member."""
        who = rng.choice(MEMBERS)
        if who in self._here:
            await self.leaves(who)
            return
        make = who.split()[0]
        await self.joins(who, "other_that_is_killed" if make == "other" and rng.random() < 0.3 else make)
