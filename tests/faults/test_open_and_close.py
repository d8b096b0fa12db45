"""Closed publishers and subscriptions leave nothing behind: 100,000 of each are opened and closed."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest
import redis

from msight_bus import brokers
from tests.support.ledger import Account
from tests.support.rig import LIVE, own_broker, until
from tests.support.stream import make, read

TIMES = [
    pytest.param(2_000, id="quick"),
    pytest.param(100_000, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
]
AT_ONCE = 50
KEPT = {"MSIGHT_PUBLISHER_TOPICS": "1000", "MSIGHT_ANNOUNCE": "false", "MSIGHT_ANNOUNCE_INTERVAL": "0.2"}
GROWTH = 24 * 2**20
"""Bytes of this process from a fifth of the way to its end; one that kept 1 KiB of each would grow by 160 MiB."""


def resident():
    """Bytes of memory of this process, 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def subscribed_at(kind, port, monitoring):
    """How many of the test's subscriptions the broker has."""
    if kind == "redis":
        with redis.Redis(port=port) as client:
            return len(client.pubsub_channels("come.*"))
    with urllib.request.urlopen(f"http://127.0.0.1:{monitoring}/connz?subs=1", timeout=20) as answer:
        connections = json.load(answer)["connections"]
    return sum(name.startswith("come.") for each in connections for name in each.get("subscriptions_list", []))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", LIVE)
async def test_publishers_and_subscriptions_come_and_go(kind, times, book):
    monitoring = brokers.free_port()
    config = [f"http: 127.0.0.1:{monitoring}"] if kind == "nats" else []
    numbers = iter(range(1, times + 1))
    most = measured = done = 0

    async def come_and_go(bus):
        nonlocal done, measured, most
        for number in numbers:
            topic = f"come.t{number}"
            async with bus.subscribe(topic) as messages, bus.publisher(topic) as publisher:
                await publisher.send(make(1, number, 20))
                async with asyncio.timeout(60):
                    assert read((await anext(messages)).payload) == (1, number)
            done += 1
            if done == times // 5:
                measured = resident()
            most = max(most, len(bus.core.backend._topics.all)) if done % 1000 == 0 else most

    with own_broker(kind, config) as (broker, backend):
        async with backend.connect(**KEPT) as bus:
            await asyncio.gather(*(come_and_go(bus) for _ in range(AT_ONCE)))
            grown = resident() - measured
            assert await asyncio.to_thread(subscribed_at, kind, broker.port, monitoring) == 0
            kept = [topic for topic, _ in bus.core.backend._subscribing.silences()]
            assert [topic for topic in kept if not topic.startswith("_msight")] == []
            await until(lambda: len(bus.core.backend._topics.all) <= int(KEPT["MSIGHT_PUBLISHER_TOPICS"]))
    assert done == times
    assert grown < GROWTH, f"{grown / 2**20:.0f} MiB"
    assert most < 20_000  # those above the limit wait for their last announcement
    assert book.account() == Account()
