"""Connections that are half-open, reset, cut at any byte, slow or split into single bytes: real brokers behind a proxy."""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager

import pytest

from msight_bus.events import Disconnected
from msight_bus.settings import Limits
from tests.support.commits import watched_commits
from tests.support.ledger import Account
from tests.support.proxy import HOST, FaultProxy, port_of, through
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until, whole
from tests.support.stream import Events, traffic

live = pytest.mark.parametrize("target", LIVE, indirect=True)
CUTS = [
    pytest.param(15, id="quick"),
    pytest.param(200, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(240)]),
]


@asynccontextmanager
async def proxied(target, book, topic, **how):
    """Traffic to and from a broker through one proxy."""
    events = Events(book.ledgers)
    async with FaultProxy(port_of(target), seed=1) as proxy:
        backend = through(proxy, target)
        async with backend.connect(events=events, **QUICKLY) as receiving, backend.connect(**QUICKLY) as sending:
            async with traffic(sending, receiving, topic, book.ledgers[topic], **how) as flow:
                yield proxy, flow, events


def test_the_default_deadlines_detect_a_dead_connection_and_reconnect_in_time():
    assert Limits().ping_interval + Limits().pong_timeout <= 15
    assert Limits().reconnect_max < 2


@live
async def test_a_half_open_connection_is_detected_by_the_ping_deadline(target, book, topic):
    async with proxied(target, book, topic) as (proxy, flow, events):
        proxy.stall()
        await until(lambda: seen(events, Disconnected))
        proxy.flow()
        book.recovered.append(await flow.flows())
    assert whole(book.account())


@pytest.mark.faults
@live
async def test_a_half_open_connection_is_detected_within_15_seconds_by_default(target, book, topic):
    events = Events(book.ledgers)
    async with FaultProxy(port_of(target)) as proxy:
        backend = through(proxy, target)
        async with backend.connect(events=events) as receiving, target.connect() as sending:
            async with traffic(sending, receiving, topic, book.ledgers[topic], pause=0.01) as flow:
                proxy.stall()
                await until(lambda: seen(events, Disconnected), within=15)
                proxy.flow()
                book.recovered.append(await flow.flows())
    assert whole(book.account())


@live
async def test_after_a_reset_the_bus_reconnects_and_reports_the_loss(target, book, topic):
    async with proxied(target, book, topic) as (proxy, flow, _):
        for _ in range(5):
            await proxy.reset()
            book.recovered.append(await flow.flows())
    assert whole(book.account())


@pytest.mark.parametrize("cuts", CUTS)
@live
async def test_a_connection_cut_at_any_byte_misreads_no_frame(target, book, topic, cuts):
    rng = random.Random(7)
    async with proxied(target, book, topic) as (proxy, flow, _):
        for _ in range(cuts):
            harmed = proxy.faults
            proxy.cut_after(rng.randrange(20_000))
            await until(lambda harmed=harmed: proxy.faults > harmed)
            book.recovered.append(await flow.flows())
    assert whole(book.account())


@live
async def test_a_connection_that_delivers_single_bytes_misreads_no_frame(target, book, topic):
    async with proxied(target, book, topic, longest=200, pause=0.02) as (proxy, flow, _events):
        proxy.conditions.slices = 1
        for _ in range(3):
            await flow.flows()
            await proxy.reset()  # connecting is sliced as well
        await flow.flows()
        proxy.conditions.slices = 3000
        await flow.flows()
    assert whole(book.account())


@live
async def test_a_slow_connection_is_kept(target, book, topic):
    async with proxied(target, book, topic, longest=3000, pause=0.01) as (proxy, flow, events):
        proxy.conditions.rate, proxy.conditions.delay = 300_000, 0.01
        slow_since = time.time()
        await until(lambda: time.time() > slow_since + 1.2)  # several times the deadline for a sign of life
        await flow.flows()
        assert not seen(events, Disconnected)
        proxy.conditions.rate, proxy.conditions.delay = None, 0
    account = book.account()
    assert account == Account(acknowledged=account.acknowledged, delivered=account.acknowledged)


@asynccontextmanager
async def kafka_behind_proxy(book, **variables):
    """Kafka tells its clients the proxy's address."""
    async with FaultProxy(seed=1) as proxy:
        with own_broker("kafka", [f"advertised.listeners=CLIENT://{HOST}:{proxy.port}"]) as (broker, backend):
            proxy.broker_port = broker.port
            events = Events(book.ledgers)
            behind = through(proxy, backend)
            async with behind.connect(events=events, MSIGHT_PUBLISH_TIMEOUT="30", **variables) as receiving:
                async with behind.connect(MSIGHT_PUBLISH_TIMEOUT="30", **variables) as sending:
                    ledger = book.ledgers["a"]
                    flowing = traffic(sending, receiving, "a", ledger, group_id="g", pause=0.005, burst=10)
                    async with flowing as flow, watched_commits(backend, "a", "g", ledger):
                        yield proxy, flow, events


def kept(account: Account) -> bool:
    """Kafka: nothing acknowledged was lost, nothing committed came again."""
    return (account.silent, account.reordered, account.damaged, account.below_committed) == (0, 0, 0, 0)


async def test_kafka_loses_no_acknowledged_message_on_connections_that_are_reset_or_cut(book):
    rng = random.Random(7)
    async with kafka_behind_proxy(book, **QUICKLY, MSIGHT_CONNECT_TIMEOUT="5") as (proxy, flow, _):
        for _ in range(3):
            await proxy.reset()
            book.recovered.append(await flow.flows())
            proxy.cut_after(rng.randrange(20_000))
            book.recovered.append(await flow.flows())
    assert kept(book.account())


@pytest.mark.faults
async def test_kafka_on_a_connection_that_is_slow_or_delivers_single_bytes(book):
    async with kafka_behind_proxy(book, **QUICKLY, MSIGHT_CONNECT_TIMEOUT="5") as (proxy, flow, _):
        for slices, rate, delay in ((1, None, 0), (2000, None, 0), (None, 200_000, 0), (None, None, 0.05)):
            proxy.conditions.slices, proxy.conditions.rate, proxy.conditions.delay = slices, rate, delay
            await flow.flows()
        proxy.conditions.delay = 0
    assert kept(book.account())


@pytest.mark.faults
async def test_kafka_detects_a_half_open_connection_within_15_seconds_by_default(book):
    async with kafka_behind_proxy(book) as (proxy, flow, events):
        proxy.stall()
        await until(lambda: seen(events, Disconnected), within=15)
        proxy.flow()
        book.recovered.append(await flow.flows())
    assert kept(book.account())
