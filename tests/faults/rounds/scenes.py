"""The faults. Each is entered once, gives a function that does one round, and returns when messages flow again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from msight_bus import AuthenticationError, BusError, MessageTooLargeError, QueuePolicy
from tests.faults.rounds.site import HARMED, Site, Stream, streams
from tests.support.brokers import GROUP
from tests.support.mixed_groups import SETTINGS, MixedGroup
from tests.support.rig import until
from tests.support.stream import Sender, take_all
from tests.support.sweep import watched

Round = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """One kind of fault.

    Attributes:
        enter: begins it at a site.
        may: columns of the ledger besides duplicates that it explains.
    """

    enter: Callable[[Site], AbstractAsyncContextManager[Round]]
    may: frozenset[str] = frozenset()


class Probe:
    """Publishes on the harmed topic until the broker has applied a change, which it does soon."""

    def __init__(self, site: Site) -> None:
        self._sender = Sender(site.sending, HARMED, site.book.ledgers[HARMED], random.Random(1), life=50)

    async def is_refused(self, kind: type[BusError], size: int = 10) -> None:
        """Publish until it is refused with an error of this kind."""
        await self._publish(lambda taken: not taken and kind in self._sender.errors, size)

    async def is_taken(self) -> None:
        """Publish until it is taken."""
        await self._publish(lambda taken: taken, 10)

    async def _publish(self, until: Callable[[bool], bool], size: int) -> None:
        self._sender.errors.clear()
        async with asyncio.timeout(30):
            while not until(await self._sender.send(size, key="probe")):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def refused_batch(site: Site) -> AsyncIterator[Round]:
    """A record without a key on a compacted topic, one above a limit that was lowered, or a permission taken away."""
    async with streams(site, cleanup_policy="compact") as (harmed, other):
        bus, operator, probe = site.sending, site.operator, Probe(site)

        async def no_key() -> None:
            results = await asyncio.gather(*(bus.publish(HARMED, b"x") for _ in range(20)), return_exceptions=True)
            if not all(isinstance(result, BusError) for result in results):
                site.failures.append("a record without a key was taken by a compacted topic")

        async def too_large() -> None:
            await operator.set(HARMED, "max.message.bytes", "20000")
            await probe.is_refused(MessageTooLargeError, 50_000)
            await harmed.flows()
            await operator.set(HARMED, "max.message.bytes", "1048588")

        async def not_permitted() -> None:
            await operator.deny("topic", HARMED, "write")
            await probe.is_refused(AuthenticationError)
            await other.flows()
            await operator.permit("topic", HARMED, "write")
            await probe.is_taken()

        async def fault() -> None:
            await site.rng.choice([no_key, too_large, not_permitted])()
            await other.flows()
            await harmed.flows()

        yield fault


def foreign_members(protocol: str) -> Callable[[Site], AbstractAsyncContextManager[Round]]:
    """Members of ours and of another make join, leave and are killed."""

    @asynccontextmanager
    async def enter(site: Site) -> AsyncIterator[Round]:
        group = MixedGroup(site.kafka, HARMED, site.book.ledgers[HARMED], protocol)
        async with site.kafka.connect(**SETTINGS) as bus, bus.subscribe(HARMED, group_id=GROUP):
            pass
        async with group.load():

            async def fault() -> None:
                await group.change(site.rng)
                await group.flows()

            yield fault

    return enter


@asynccontextmanager
async def deleted_topic(site: Site) -> AsyncIterator[Round]:
    """A topic is deleted, and made anew with fewer or more partitions, by an operator or by the bus."""
    async with streams(site, members=2) as (harmed, other):

        async def fault() -> None:
            await site.operator.delete(HARMED)
            if site.rng.random() < 0.7:
                await asyncio.sleep(site.rng.choice((0, 0.05, 0.5)))
                await _create(site, site.rng.randint(1, 8))
            await other.flows()
            await harmed.flows()

        yield fault


async def _create(site: Site, partitions: int) -> None:
    """Create the topic, unless the bus was faster."""
    creating = asyncio.create_task(site.operator.create(HARMED, partitions))
    await asyncio.wait((creating,), timeout=3)
    if not creating.done():
        creating.cancel()
        await asyncio.wait((creating,))


@asynccontextmanager
async def added_partitions(site: Site) -> AsyncIterator[Round]:
    """Partitions are added twice to the topic of a group of two or three; publishers learn of them when they connect."""
    number = 0

    async def fault() -> None:
        nonlocal number
        number += 1
        topic, total = f"{HARMED}.{number}", site.rng.randint(1, 4)
        await site.operator.create(topic, total)
        stream = Stream(site, topic)
        async with stream.members(site.rng.choice((2, 3))), stream.published():
            await stream.flows()
            for life in (2, 3):
                total += site.rng.randint(1, 4)
                await site.operator.add_partitions(topic, total)
                async with site.connect() as bus:
                    await _each_partition(bus, topic, stream, total, life)
                await stream.flows()

    yield fault


async def _each_partition(bus: object, topic: str, stream: Stream, total: int, life: int) -> None:
    """Publish so many keys that each partition has some, and wait for all."""
    senders = [
        Sender(bus, topic, stream.ledger, random.Random(key), life=life)  # type: ignore[arg-type]
        for key in range(8 * total)
    ]
    await asyncio.gather(*(sender.send(10, key=f"k{key}") for key, sender in enumerate(senders)))
    await until(
        lambda: all(stream.ledger.highest((f"k{key}", life)) == sender.number for key, sender in enumerate(senders)),
        within=60,
    )


@asynccontextmanager
async def silent_path(site: Site) -> AsyncIterator[Round]:
    """The path drops everything for a while; the connections that it carried then stay silent."""
    async with streams(site) as (harmed, other):

        async def fault() -> None:
            site.proxy.vanish()
            await asyncio.sleep(site.rng.uniform(0.1, 4))
            site.proxy.appear()
            await other.flows()
            await harmed.flows()

        yield fault


@asynccontextmanager
async def freezes(site: Site) -> AsyncIterator[Round]:
    """The broker hangs at the nth suspension of a member that comes and goes, and publishes: of any of its tasks."""
    async with streams(site) as (harmed, other):
        most = 250

        async def fault() -> None:
            nonlocal most
            while not await _freeze(site, harmed, site.rng.randint(1, most)):
                most -= most // 10  # so many it has not
            await other.flows()
            await harmed.flows()

        yield fault


async def _freeze(site: Site, stream: Stream, nth: int) -> bool:
    """Let a member live, and the broker hang at its nth suspension; returns whether it did."""
    site.lives += 1
    seconds = site.rng.choice((0.3, 1.0, 4.0))  # the last is longer than a session
    loop = asyncio.get_running_loop()
    thaw: list[asyncio.TimerHandle] = []

    def freeze() -> None:
        site.broker.freeze()
        thaw.append(loop.call_later(seconds, site.broker.thaw))

    with watched(nth, freeze) as watching:
        try:
            async with asyncio.timeout(60):
                await asyncio.create_task(_life(site, stream))
        finally:
            site.broker.thaw()
            for each in thaw:
                each.cancel()
    site.done["froze" if watching.happened else "ended before"] += 1
    return watching.happened


async def _life(site: Site, stream: Stream) -> None:
    """Join, publish, read what one has of the partitions, leave."""
    async with site.connect(MSIGHT_CONNECT_TIMEOUT="20") as bus:
        sender = Sender(bus, HARMED, stream.ledger, random.Random(1), life=site.lives)
        async with bus.subscribe(HARMED, group_id="g") as messages:
            reading = asyncio.create_task(take_all(messages, stream.ledger))
            for _ in range(5):
                await sender.send(100, key="own")
            await until(lambda: stream.ledger.highest(("own", site.lives)) == 5, within=50)
            reading.cancel()
            await asyncio.wait((reading,))


@asynccontextmanager
async def retention(site: Site) -> AsyncIterator[Round]:
    """Retention deletes what a slow member has not read of a burst, at any moment."""
    await site.operator.create(HARMED, 2)
    stream = Stream(site, HARMED, keys=2)
    async with stream.members(1, queue=QueuePolicy.block(5), pause=0.002), stream.published(pause=0.05):

        async def fault() -> None:
            bursts = [sender.send(50, key=f"k{key}") for _ in range(150) for key, sender in enumerate(stream.senders)]
            await asyncio.gather(*bursts)
            await asyncio.sleep(site.rng.uniform(0, 0.5))
            ends = {partition: -1 for partition in range(2) if site.rng.random() < 0.7}
            if ends:
                await site.operator.delete_records(HARMED, ends)
            await stream.flows()

        yield fault


@asynccontextmanager
async def permissions(site: Site) -> AsyncIterator[Round]:
    """A right to read a topic, a group, or to publish is taken away and given back; who was refused comes again."""
    async with streams(site) as (harmed, other):
        probe = Probe(site)

        async def fault() -> None:
            kind, name, operation = site.rng.choice(
                [
                    ("topic", HARMED, "read"),
                    ("group", "g", "read"),
                    ("topic", HARMED, "write"),
                    ("topic", HARMED, "describe"),
                ]
            )
            refused = (harmed.refused, other.refused)
            await site.operator.deny(kind, name, operation)
            if operation == "write":
                await probe.is_refused(AuthenticationError)
            else:
                await until(lambda: (harmed.refused, other.refused) > refused, within=60)
            await site.operator.permit(kind, name, operation)
            await other.flows()
            await harmed.flows()

        yield fault


SCENES = {
    "refused batch": Scene(refused_batch),
    "foreign members, classic": Scene(foreign_members("classic")),
    "foreign members, KIP-848": Scene(foreign_members("KIP-848")),
    "deleted topic": Scene(deleted_topic, frozenset({"unsized", "reordered"})),
    "added partitions": Scene(added_partitions, frozenset({"reordered"})),
    "silent path": Scene(silent_path),
    "freezes": Scene(freezes),
    "retention": Scene(retention, frozenset({"announced"})),
    "permissions": Scene(permissions),
}
