"""A subscriber's process is killed while processing a message."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.support.brokers import GROUP
from tests.support.commits import watched_commits
from tests.support.rig import LIVE, python, until
from tests.support.stream import Sender


async def subscriber(process, ledger, n, *, acknowledge=True):
    """Let a subscriber's process take ``n`` messages; returns their numbers and the bus's sequences."""
    taken = []
    for _ in range(n):
        _key, life, number, sequence = (await process.stdout.readline()).split()
        taken.append((int(number), int(sequence)))
        ledger.delivered((None, int(life)), int(number), 0)
        if acknowledge or len(taken) < n:
            process.stdin.write(b"\n")
    return taken


def subscribing(target, topic, group="-", **variables):
    return python("-m", "tests.faults.peer", "subscribe", topic, group, env={**target.env, **variables})


@pytest.mark.parametrize("target", LIVE, indirect=True)
async def test_sequences_reveal_how_many_messages_a_crashed_subscriber_lost(target, book, topic):
    ledger = book.ledgers[topic]
    async with target.connect() as bus:
        sender = Sender(bus, topic, ledger, random.Random(1))
        async with subscribing(target, topic) as process:
            assert await process.stdout.readline() == b"ready\n"
            for _ in range(10):
                await sender.send(100)
            before = await subscriber(process, ledger, 6, acknowledge=False)
            process.kill()
            await process.wait()
        for _ in range(5):
            await sender.send(100)
        async with subscribing(target, topic) as process:
            assert await process.stdout.readline() == b"ready\n"
            for _ in range(10):
                await sender.send(100)
            after = await subscriber(process, ledger, 10)
    assert (before[-1][0], after[0][0]) == (6, 16)
    assert book.account().silent == 9  # nobody was there to announce it
    ledger.announced(after[0][1] - before[-1][1] - 1, 0)
    assert book.account().announced == 9


async def test_kafka_redelivers_the_unacknowledged_messages_of_a_crashed_subscriber(kafka, book, topic):
    ledger = book.ledgers[topic]
    variables = {"MSIGHT_KAFKA_SESSION_TIMEOUT": "1", "MSIGHT_KAFKA_COMMIT_INTERVAL": "0.05"}
    async with kafka.connect() as bus:
        sender = Sender(bus, topic, ledger, random.Random(1))
        async with subscribing(kafka, topic, GROUP, **variables) as process:
            assert await process.stdout.readline() == b"ready\n"
            await sender.send(100)
            await asyncio.gather(*(sender.send(100) for _ in range(19)))
            taken = [number for number, _ in await subscriber(process, ledger, 8, acknowledge=False)]
            async with watched_commits(kafka, topic, GROUP, ledger):
                await until(lambda: sum(ledger.commits.values()) >= 7)
            process.kill()
            await process.wait()
        async with subscribing(kafka, topic, GROUP, **variables) as process:
            assert await process.stdout.readline() == b"ready\n"
            await asyncio.gather(*(sender.send(100) for _ in range(5)))
            again = []
            while not again or again[-1] < 25:
                again += [number for number, _ in await subscriber(process, ledger, 1)]
    assert taken == list(range(1, 9))
    assert again == list(range(8, 26))  # the one in hand comes again
    assert book.account().silent == 0
