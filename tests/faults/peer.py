"""A publisher or a subscriber in a process of its own, so that a test can kill it.

``python -m tests.faults.peer publish TOPIC LIFE`` prints the number of each message that is confirmed;
``python -m tests.faults.peer subscribe TOPIC GROUP`` (``-`` is none) prints key, life, number and the bus's sequence of each
message, and takes the next one when it is sent a line;
``python -m tests.faults.peer other TOPIC GROUP PROTOCOL`` is a member of another make, confluent-kafka, and prints key, life and
number of each message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys

from confluent_kafka import Message

import msight_bus
from msight_bus import BusError
from tests.support import stream
from tests.support.brokers import Backend
from tests.support.librdkafka import PROTOCOLS, Member


def tell(*what: object) -> None:
    """A line for the parent."""
    sys.stdout.write(" ".join(map(str, what)) + "\n")
    sys.stdout.flush()


async def publish(topic: str, life: str) -> None:
    """Publish for ever; what has gone out is confirmed every few messages."""
    rng = random.Random(int(life))
    number = 0
    async with msight_bus.connect() as bus, bus.publisher(topic) as publisher:
        while True:
            for _ in range(20):
                await publisher.send(stream.make(int(life), number + 1, rng.randint(0, 500)))
                number += 1
                await asyncio.sleep(0.002)
            try:
                await publisher.flush()
            except BusError:
                continue  # a cut: the subscriber's ledger will tell
            tell(number)


async def subscribe(topic: str, group: str) -> None:
    """Print each message and wait until the parent allows the next."""
    async with msight_bus.connect() as bus:
        async with bus.subscribe(topic, group_id=None if group == "-" else group, start="latest") as messages:
            tell("ready")
            async for message in messages:
                life, number = stream.read(message.payload) or (0, 0)
                tell(message.key or "-", life, number, message.sequence)
                if not await asyncio.to_thread(sys.stdin.readline):
                    return


def other(topic: str, group: str, protocol: str) -> None:
    """Print each message and read the next, for ever."""

    def seen(message: Message) -> None:
        life, number = stream.read(message.value()) or (0, 0)
        tell((message.key() or b"-").decode(), life, number)

    Member(Backend("kafka", dict(os.environ)), topic, group, seen, **PROTOCOLS[protocol]).run()


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # faults are what it is for
    what, *arguments = sys.argv[1:]
    if what == "other":
        other(*arguments)
    else:
        msight_bus.run({"publish": publish, "subscribe": subscribe}[what](*arguments))
