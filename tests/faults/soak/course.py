"""One soak: its plan, what it counts on the way, and its verdict."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msight_bus import brokers
from msight_bus.events import BusEvent, Gap
from tests.support.ledger import Account, Ledger
from tests.support.stream import Events

MORTAL = "mortal"

"""The topic whose publishers are killed: nobody is left to tell how much their last messages were."""

HARMED = "harmed"
"""Its publisher's connection is cut, and a broker reads on what was written to it beside the next one: measured with raw
sockets on nats-server 2.15.1, a closed connection's messages were passed on behind the next one's in 40 of 40 tries."""

_GROWTH = 1.10
"""Memory is flat if it has grown by less than this and `_ROOM` from the second fifth of a soak to its last."""

_ROOM = 8 * 2**20
_SAMPLE_EVERY = 1.0


@dataclass(frozen=True)
class Plan:
    """What a soak is to reach: it ends when all counts are reached, or the time is over."""

    backend: str
    seed: int
    seconds: float
    kills: int
    faults: int
    rebalances: int


class Course:
    """A soak under way.

    Attributes:
        done: faults so far, by what they were.
        recovered: seconds from the open port to the first new message, for each kill.
        ledgers: by topic.
        failures: what went wrong besides the figures.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.done: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.recovered: list[float] = []
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self.failures: list[str] = []
        self.broker = ""
        self._say = say
        self._began = time.monotonic()
        self._said = self._began
        self._memory: list[int] = []
        self._tasks = asyncio.all_tasks()
        self._tasks_left: list[str] = []

    def listener(self) -> Events:
        """Where a bus reports its events: gaps go to the ledgers, the others are counted."""
        return _Counting(self.ledgers, self.events)

    def goes_on(self, kind: str, target: int) -> bool:
        """Whether there is time left and ``target`` faults of this kind are not reached."""
        return self.done[kind] < target and self.seconds < self.plan.seconds

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    async def watch_memory(self) -> None:
        """Look at the memory of this process now and then, for ever, and report progress."""
        while True:
            self._memory.append(_resident())
            if time.monotonic() - self._said > 10:
                self._said = time.monotonic()
                counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.done.items()))
                self._say(
                    f"{self.seconds:6.0f} s: {counts}; p99 {_at(self.recovered, 0.99):.2f} s; {self._memory[-1] >> 20} MiB"
                )
            await asyncio.sleep(_SAMPLE_EVERY)

    def uses(self, broker: brokers.RunningBroker) -> None:
        """Remember which broker it was."""
        self.broker = f"{broker.name} {broker.version}"

    # -- the verdict

    def note_tasks_left(self) -> None:
        """Called when all is closed, on the loop."""
        self._tasks_left = [f"task {task.get_name()}" for task in asyncio.all_tasks() - self._tasks]

    def figures(self, left: list[str]) -> dict[str, Any]:
        """Everything that was counted; ``left`` are threads and descriptors when all is closed."""
        fifth = max(1, len(self._memory) // 5)
        early, late = (
            sum(part) / len(part) for part in (self._memory[fifth : 2 * fifth] or [0], self._memory[-fifth:])
        )
        return {
            "seconds": round(self.seconds, 1),
            "done": dict(self.done),
            "events": dict(self.events),
            "recovery_seconds": {name: round(_at(self.recovered, q), 3) for name, q in _QUANTILES.items()},
            "ledger": {topic: asdict(ledger.account()) for topic, ledger in sorted(self.ledgers.items())},
            "memory_mib": {
                "early": round(early / 2**20, 1),
                "late": round(late / 2**20, 1),
                "peak": max(self._memory) >> 20,
            },
            "memory_is_flat": late < early * _GROWTH + _ROOM,
            "left_over": self._tasks_left + left,
        }

    def verdict(self, figures: dict[str, Any]) -> list[str]:
        """What is not as promised."""
        plan, wrong = self.plan, list(self.failures)
        for kind in ("kills", "faults", "rebalances"):
            if self.done[kind] < getattr(plan, kind):
                wrong.append(f"{self.done[kind]} of {getattr(plan, kind)} {kind} within {plan.seconds:g} s")
        for topic, account in figures["ledger"].items():
            never = _NEVER if topic == MORTAL else (*_NEVER, "unsized")
            bad = {name: account[name] for name in never if account[name]}
            if topic == HARMED and account["overstated"] <= account["reordered"]:  # announced as lost, and came late
                bad = {name: n for name, n in bad.items() if name not in ("overstated", "reordered")}
            if account["delivered"] == 0 or bad:
                wrong.append(f"{topic}: {bad or 'nothing was delivered'}")
        if plan.backend != "kafka" and figures["recovery_seconds"]["p99"] >= 2:
            wrong.append(f"recovery p99 is {figures['recovery_seconds']['p99']} s")
        if not figures["memory_is_flat"]:
            wrong.append(f"memory grew: {figures['memory_mib']}")
        return wrong + [f"left over: {one}" for one in figures["left_over"]]


_NEVER = ("silent", "overstated", "damaged", "reordered", "below_committed")
_QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


class _Counting(Events):
    def __init__(self, ledgers: dict[str, Ledger], counts: Counter[str]) -> None:
        super().__init__(ledgers)
        self._counts = counts

    def append(self, event: BusEvent) -> None:
        name = type(event).__name__
        self._counts[f"{name} of unknown size" if isinstance(event, Gap) and event.missing is None else name] += 1
        super().append(event)
        self.clear()  # a soak is long


def _at(values: list[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def total(accounts: dict[str, dict[str, int]]) -> Account:
    """All topics together."""
    return sum((Account(**account) for account in accounts.values()), Account())
