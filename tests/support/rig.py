"""Common code of fault tests: brokers, processes, and the record of each test."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from msight_bus import brokers
from msight_bus.bench.usage import forget_peak, peak_bytes
from msight_bus.events import BusEvent
from msight_bus.runtime import loop_factory
from tests.support.brokers import Backend, make_backend, start_broker
from tests.support.ledger import Account, Ledger

LIVE = ["redis", "nats"]
EVERY = [*LIVE, "kafka"]
QUICKLY = {"MSIGHT_RECONNECT_MAX": "0.2", "MSIGHT_PING_INTERVAL": "0.3", "MSIGHT_PONG_TIMEOUT": "0.3"}
"""Settings with short deadlines, for short outages."""


@contextmanager
def own_broker(kind: str, config: Sequence[str] = ()) -> Iterator[tuple[brokers.RunningBroker, Backend]]:
    """Start a broker that the test can kill."""
    with start_broker(kind, config) as broker:
        yield broker, make_backend(kind, broker)


@contextmanager
def frozen(broker: brokers.RunningBroker) -> Iterator[None]:
    """Suspend a broker."""
    broker.freeze()
    try:
        yield
    finally:
        broker.thaw()


async def until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Poll until ``condition`` holds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


def seen(events: Sequence[BusEvent], kind: type[BusEvent]) -> list[BusEvent]:
    """Return the events of one kind."""
    return [event for event in events if isinstance(event, kind)]


@asynccontextmanager
async def python(*arguments: str, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a Python process that is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def whole(account: Account) -> bool:
    """Check that no message was lost unreported, damaged, duplicated or reordered, and each loss was reported with its size."""
    return account == Account(
        acknowledged=account.acknowledged,
        unknown=account.unknown,
        delivered=account.delivered,
        announced=account.announced,
    )


class Leftovers:
    """Threads and file descriptors that were not open at the start."""

    def __init__(self) -> None:
        loop_factory()().close()  # the first event loop of a process opens a pipe that stays open
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def now(self) -> list[str]:
        """Return the names of leftover threads and descriptors."""
        gc.collect()
        threads = [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self._threads]
        return threads + [f"descriptor {one}" for one in sorted(_descriptors() - self._descriptors)]


def _descriptors() -> set[str]:
    folder = Path("/proc/self/fd")
    if not folder.exists():  # macOS
        folder = Path("/dev/fd")
    found = set()
    for each in folder.iterdir():
        try:
            found.add(f"{each.name} {each.readlink()}")
        except OSError:
            continue  # the descriptor of this listing
    return found


class Book:
    """The record of one test: a ledger per topic, recovery times, peak memory, and leftovers.

    Attributes:
        recovered: seconds until messages were delivered again, by fault.
        dropped: messages that the queues of subscriptions dropped, by topic.
    """

    def __init__(self) -> None:
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self.recovered: list[float] = []
        self.dropped: Counter[str] = Counter()
        self._leftovers = Leftovers()
        forget_peak()

    def account(self) -> Account:
        """Return the sum of all ledgers."""
        accounts = [ledger.account(dropped=self.dropped[topic]) for topic, ledger in self.ledgers.items()]
        return sum(accounts, Account())

    def close(self) -> dict[str, Any]:
        """Return the figures, one per line."""
        left = self._leftovers.now()
        figures: dict[str, Any] = {"ledger": str(self.account()), "peak memory": f"{peak_bytes() / 2**20:.0f} MiB"}
        if self.recovered:
            figures["recovered within"] = f"{max(self.recovered):.2f} s"
        return figures | {"left over": ", ".join(left)}
