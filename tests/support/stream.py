"""Send and receive numbered messages, recorded in a ledger."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from msight_bus import Bus, BusError, Subscription
from msight_bus.events import BusEvent, Gap
from tests.support.ledger import Ledger

_HEAD = struct.Struct(">IQ")  # the publisher's life, the message's number
_TEMPTING = b"\r\nMSG a 1 3\r\n$5\r\n*3\r\n+OK\r\nPONG\r\n"  # what a parser that lost its place would take for protocol
LONGEST = 1_000_000
_BODIES = (_TEMPTING + random.Random(1).randbytes(97)) * (2 * LONGEST // (len(_TEMPTING) + 97) + 1)
_assignments = itertools.count()


def make(life: int, number: int, size: int) -> bytes:
    """Return a message of a head and ``size`` bytes; the number determines the bytes."""
    start = number * 7919 % LONGEST
    return _HEAD.pack(life, number) + _BODIES[start : start + size]


def read(payload: bytes) -> tuple[int, int] | None:
    """Return the session and number of a message; ``None`` if the message is damaged."""
    if len(payload) < _HEAD.size:
        return None
    life, number = _HEAD.unpack_from(payload)
    return (life, number) if payload == make(life, number, len(payload) - _HEAD.size) else None


class Sender:
    """Publishes numbered messages until `stop` is set.

    Attributes:
        number: number of the last message.
        life: session of this publisher, part of its messages.
        stop: event that ends the sender.
        errors: types of the raised errors.
    """

    def __init__(self, bus: Bus, topic: str, ledger: Ledger, rng: random.Random, *, life: int = 1) -> None:
        self.number = 0
        self.stop = asyncio.Event()
        self.errors: set[type[BusError]] = set()
        self._bus = bus
        self._topic = topic
        self._ledger = ledger
        self._rng = rng
        self.life = life

    async def run(self, *, longest: int = 2000, pause: float = 0.001, burst: int = 1, key: str | None = None) -> None:
        """Publish ``burst`` messages of up to ``longest`` bytes, pause, and repeat."""
        while not self.stop.is_set():
            await asyncio.gather(*(self.send(self._rng.randint(0, longest), key=key) for _ in range(burst)))
            await asyncio.sleep(pause)

    async def send(self, size: int, *, key: str | None = None) -> bool:
        """Publish one message; return whether it was acknowledged."""
        self.number = number = self.number + 1
        stream = (key, self.life)
        try:
            await self._bus.publish(self._topic, make(self.life, number, size), key=key)
        except BusError as error:
            self.errors.add(type(error))
            self._ledger.unknown(stream, number, time.time())
            return False
        self._ledger.acknowledged(stream, number, time.time())
        return True


async def take_all(messages: Subscription, ledger: Ledger, *, pause: float = 0.0) -> None:
    """Read until the subscription ends."""
    assigned: dict[int, tuple[object, int]] = {}
    async for message in messages:
        numbers = read(message.payload)
        if numbers is None:
            ledger.damaged += 1
            continue
        life, number = numbers
        ledger.delivered((message.key, life), number, message.received_at)
        if message.position is not None:
            partition, offset = message.position
            if message._settlement is not assigned.get(partition, (None, 0))[0]:
                assigned[partition] = (message._settlement, next(_assignments))
            ledger.fetched(assigned[partition][1], partition, offset)
        if pause:
            await asyncio.sleep(pause)


class Traffic:
    """A running sender and reader.

    Attributes:
        sender: the sender.
        messages: subscription of the reader.
    """

    def __init__(self, sender: Sender, messages: Subscription, ledger: Ledger, key: str | None) -> None:
        self.sender = sender
        self.messages = messages
        self._ledger = ledger
        self._stream = (key, sender.life)

    async def flows(self, *, messages: int = 30, within: float = 20.0) -> float:
        """Wait for ``messages`` messages published from now on; return the seconds until the first."""
        began = time.monotonic()
        number = self.sender.number
        async with asyncio.timeout(within):
            while self._ledger.highest(self._stream) <= number:
                await asyncio.sleep(0.002)
            first = time.monotonic() - began
            while self._ledger.highest(self._stream) < number + messages:
                await asyncio.sleep(0.002)
        return first


@asynccontextmanager
async def traffic(
    sending: Bus,
    receiving: Bus,
    topic: str,
    ledger: Ledger,
    *,
    seed: int = 0,
    key: str | None = None,
    group_id: str | None = None,
    **how: Any,
) -> AsyncIterator[Traffic]:
    """Send numbered messages from one bus to another; at the end wait for the last one. ``how``: arguments of `Sender.run`."""
    async with receiving.subscribe(topic, group_id=group_id) as messages:
        sender = Sender(sending, topic, ledger, random.Random(seed))
        flow = Traffic(sender, messages, ledger, key)
        reading = asyncio.create_task(take_all(messages, ledger), name=f"reader of {topic}")
        publishing = asyncio.create_task(sender.run(key=key, **how), name=f"sender on {topic}")
        try:
            await flow.flows()
            yield flow
            await flow.flows()
            sender.stop.set()
            await publishing
            async with asyncio.timeout(20):
                while ledger.highest((key, sender.life)) < sender.number:
                    await asyncio.sleep(0.002)
        finally:
            reading.cancel()
            publishing.cancel()
            await asyncio.wait((reading, publishing))


class Events(list[BusEvent]):
    """Collects events as ``connect(on_event=...)``, and records gaps in the ledger of their topic."""

    def __init__(self, ledgers: Mapping[str, Ledger]) -> None:
        super().__init__()
        self._ledgers = ledgers

    def append(self, event: BusEvent) -> None:
        if isinstance(event, Gap) and event.topic in self._ledgers:
            self._ledgers[event.topic].announced(event.missing, time.time())
        super().append(event)
