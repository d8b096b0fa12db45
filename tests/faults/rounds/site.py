"""A broker behind a proxy, and streams through it that are in a ledger: where the faults of `scenes.py` happen."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

from msight_bus import AuthenticationError, Bus, BusError, QueuePolicy, brokers
from tests.support.brokers import Backend
from tests.support.ledger import Ledger
from tests.support.operators import AUTHORIZING, Operator
from tests.support.proxy import HOST, FaultProxy, through
from tests.support.rig import QUICKLY, Book, own_broker, until
from tests.support.stream import Events, Sender, take_all

PATIENT = {
    **QUICKLY,
    "MSIGHT_CONNECT_TIMEOUT": "5",
    "MSIGHT_PUBLISH_TIMEOUT": "20",
    "MSIGHT_KAFKA_SESSION_TIMEOUT": "3",
    "MSIGHT_KAFKA_PARTITIONS": "4",
}
SETTLED_WITHIN = 90.0
HARMED, OTHER = "harmed", "other"


class Site:
    """What a scene has at hand.

    Attributes:
        kafka: leads to the broker through the proxy, as the broker's own advertised address does.
        operator: administers it.
        sending: the bus of all publishers.
        rng: of all that is random.
        failures: what went wrong besides the ledgers.
        done: what a scene counts.
    """

    def __init__(
        self, broker: brokers.RunningBroker, kafka: Backend, proxy: FaultProxy, sending: Bus, *, seed: int, book: Book
    ) -> None:
        self.broker = broker
        self.kafka = kafka
        self.proxy = proxy
        self.operator = Operator(kafka)
        self.sending = sending
        self.rng = random.Random(seed)
        self.book = book
        self.failures: list[str] = []
        self.done: Counter[str] = Counter()
        self.lives = 100

    def connect(self, **variables: str) -> Any:
        """Another bus, whose gaps are in the ledger."""
        return self.kafka.connect(events=Events(self.book.ledgers), **{**PATIENT, **variables})


@asynccontextmanager
async def open_site(seed: int, book: Book) -> AsyncIterator[Site]:
    """A broker of its own."""
    async with FaultProxy(0, seed=seed) as proxy:
        lines = [*AUTHORIZING, f"advertised.listeners=CLIENT://{HOST}:{proxy.port}"]
        with own_broker("kafka", lines) as (broker, backend):
            proxy.broker_port = broker.port
            kafka = through(proxy, backend)
            async with kafka.connect(**PATIENT) as sending:
                site = Site(broker, kafka, proxy, sending, seed=seed, book=book)
                yield site
                site.operator.close()


class Stream:
    """Messages with keys on one topic, from the site's bus to the members of a group.

    Attributes:
        senders: one for each key.
        reading: members read while it is set.
        refused: how often a member was refused and has subscribed again.
    """

    def __init__(self, site: Site, topic: str, *, keys: int = 4, life: int = 1) -> None:
        self._site = site
        self.topic = topic
        self.ledger: Ledger = site.book.ledgers[topic]
        self.life = life
        self.senders = [Sender(site.sending, topic, self.ledger, random.Random(key), life=life) for key in range(keys)]
        self.refused = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def _member(self, entered: asyncio.Event, queue: QueuePolicy | None, pause: float) -> None:
        async with self._site.connect() as bus:
            while True:
                try:
                    async with bus.subscribe(self.topic, group_id="g", start="earliest", queue=queue) as messages:
                        entered.set()
                        await take_all(messages, self.ledger, pause=pause)
                except AuthenticationError:
                    self.refused += 1
                    await asyncio.sleep(0.1)

    @asynccontextmanager
    async def members(
        self, count: int = 1, *, queue: QueuePolicy | None = None, pause: float = 0.0
    ) -> AsyncIterator[None]:
        """So many members of the group, each with a bus of its own."""
        entered = [asyncio.Event() for _ in range(count)]
        tasks = [asyncio.create_task(self._member(each, queue, pause)) for each in entered]
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(each.wait() for each in entered))
            yield
        finally:
            for task in tasks:
                if not task.cancel():
                    self._site.failures.append(f"a member of {self.topic} ended: {task}")
            await asyncio.wait(tasks)

    @asynccontextmanager
    async def published(self, *, pause: float = 0.02) -> AsyncIterator[None]:
        """Publish; at the end all that was acknowledged has arrived or its loss was announced, or the ledger says so."""
        tasks = [
            asyncio.create_task(sender.run(pause=pause, burst=3, longest=300, key=f"k{key}"))
            for key, sender in enumerate(self.senders)
        ]
        try:
            yield
            for sender in self.senders:
                sender.stop.set()
            await asyncio.wait(tasks)
            limit = time.monotonic() + SETTLED_WITHIN
            while self.ledger.account().silent and time.monotonic() < limit:
                await asyncio.sleep(0.1)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def flows(self) -> None:
        """Wait until messages of each key arrive that were published from now on."""
        before = [sender.number for sender in self.senders]

        def flow() -> bool:
            return all(self.ledger.highest((f"k{key}", self.life)) > number + 3 for key, number in enumerate(before))

        try:
            await until(flow, within=SETTLED_WITHIN)
        except TimeoutError:
            where = [self.ledger.highest((f"k{key}", self.life)) for key in range(len(self.senders))]
            raise TimeoutError(f"{self.topic}: published {before} and more, delivered {where}") from None

    @property
    def errors(self) -> set[type[BusError]]:
        """What publishing has raised."""
        return set().union(*(sender.errors for sender in self.senders))


@asynccontextmanager
async def streams(
    site: Site, *, members: int = 1, partitions: int = 4, **config: str
) -> AsyncIterator[tuple[Stream, Stream]]:
    """A stream that is to be harmed, and one on another topic, of the same publishing bus, that must not notice."""
    await site.operator.create(HARMED, partitions, **config)
    await site.operator.create(OTHER, 1)
    harmed, other = Stream(site, HARMED), Stream(site, OTHER)
    async with AsyncExitStack() as stack:
        for stream, count in ((harmed, members), (other, 1)):
            await stack.enter_async_context(stream.members(count))
            await stack.enter_async_context(stream.published())
            await stream.flows()
        yield harmed, other
    if other.errors:
        site.failures.append(f"publishing on the other topic raised {sorted(each.__name__ for each in other.errors)}")


def verdict(site: Site, may: frozenset[str]) -> list[str]:
    """What is not as promised; ``may`` are columns of the ledger that the scene explains."""
    wrong = list(site.failures)
    for topic, ledger in site.book.ledgers.items():
        account = asdict(ledger.account())
        never = {"silent", "damaged"} | ({"unsized", "announced", "overstated", "reordered"} - may)
        bad = {name: account[name] for name in sorted(never) if account[name]}
        if bad or not account["delivered"]:
            wrong.append(f"{topic}: {bad or 'nothing was delivered'}")
    return wrong
