"""The broker is killed with SIGKILL under traffic and restarted; a ledger accounts for every message."""

from __future__ import annotations

import asyncio
import time

import pytest

from msight_bus.events import Disconnected, Reconnected
from tests.support.commits import watched_commits
from tests.support.ledger import Account
from tests.support.rig import LIVE, QUICKLY, own_broker, python, seen, until
from tests.support.stream import Events, take_all, traffic

KILLS = [pytest.param(3, id="quick"), pytest.param(25, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(120)])]


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", LIVE)
async def test_a_loss_by_a_killed_broker_is_reported_with_its_size(kind, kills, book):
    events = Events(book.ledgers)
    with own_broker(kind) as (broker, backend):
        async with backend.connect(events=events, **QUICKLY) as receiving, backend.connect(**QUICKLY) as sending:
            async with traffic(sending, receiving, "a", book.ledgers["a"]) as flow:
                for _ in range(kills):
                    await asyncio.to_thread(broker.kill)
                    await asyncio.to_thread(broker.restart)
                    book.recovered.append(await flow.flows())
            assert flow.messages.stats.gaps >= kills
            # Redis has two connections; outages that overlap are one.
            await until(lambda: len(seen(events, Reconnected)) == len(seen(events, Disconnected)) > 0)
    account = book.account()
    assert account == Account(
        acknowledged=account.acknowledged, delivered=account.delivered, announced=account.announced
    )


@pytest.mark.parametrize("kind", LIVE)
async def test_a_gap_is_reported_if_the_publisher_was_killed_too(kind, book):
    events, ledger = Events(book.ledgers), book.ledgers["a"]
    with own_broker(kind) as (broker, backend):
        async with backend.connect(events=events, **QUICKLY) as bus, bus.subscribe("a") as messages:
            reading = asyncio.create_task(take_all(messages, ledger))
            async with python("-m", "tests.faults.peer", "publish", "a", "1", env=backend.env) as publisher:
                for _ in range(3):
                    ledger.acknowledged_to((None, 1), int(await publisher.stdout.readline()), time.time())
                await asyncio.to_thread(broker.kill)
                publisher.kill()
                for line in (await publisher.communicate())[0].split():
                    ledger.acknowledged_to((None, 1), int(line), time.time())
            ledger.acknowledged_to((None, 1), ledger.highest((None, 1)) + 5, time.time())  # some were on their way
            await asyncio.to_thread(broker.restart)
            await until(lambda: seen(events, Reconnected))
            async with python("-m", "tests.faults.peer", "publish", "a", "2", env=backend.env) as publisher:
                ledger.acknowledged_to((None, 2), int(await publisher.stdout.readline()), time.time())
            await until(lambda: ledger.highest((None, 2)) >= 20)
            reading.cancel()
            await asyncio.wait((reading,))
    account = book.account()
    assert account.unsized >= 5
    assert (account.silent, account.announced, account.duplicated, account.reordered, account.damaged) == (
        0,
        0,
        0,
        0,
        0,
    )


@pytest.mark.faults
@pytest.mark.timeout(180)
async def test_kafka_loses_no_acknowledged_message_and_redelivers_uncommitted_messages_only(book):
    with own_broker("kafka") as (broker, backend):
        async with (
            backend.connect(MSIGHT_PUBLISH_TIMEOUT="60") as receiving,
            backend.connect(MSIGHT_PUBLISH_TIMEOUT="60") as sending,
            traffic(sending, receiving, "a", book.ledgers["a"], group_id="g", burst=20) as flow,
            watched_commits(backend, "a", "g", book.ledgers["a"]),
        ):
            for _ in range(3):
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(broker.restart)
                book.recovered.append(await flow.flows(within=60))
    account = book.account()
    assert (account.silent, account.reordered, account.damaged, account.below_committed) == (0, 0, 0, 0)
