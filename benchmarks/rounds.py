"""Runs everything that is compared on one broker, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.catalog import AGAIN, CEILING, FRAMEWORK, Catalog, catalog
from benchmarks.logs import Logs
from benchmarks.scale import ALWAYS, SMALL, Scale
from msight_bus.bench.candidates import Side
from msight_bus.bench.figures import Figures, is_disturbed, of_latency, of_publisher, of_subscriber, summary
from msight_bus.bench.jobs import Plan, VoidError
from msight_bus.bench.stage import Stage
from msight_bus.bench.worker import WorkerError
from msight_bus.brokers import RunningBroker

LATENCY_SIZE, LATENCY_RATE = 1024, 1000.0
_WINDOW_BYTES = 7_500_000
_SLOW_SHARE = 5
"""A slow framework gets this part of the messages, or its runs would take all the time there is."""

_LATENCY_SHARE = 0.4
"""Latency takes this part of the time at most; the other measurements share the rest evenly."""

Say = Callable[[str], None]


class DisturbedError(Exception):
    """A latency run whose sender was late; its figures come along."""

    def __init__(self, figures: Figures) -> None:
        super().__init__(f"the sender's slip is {figures['slip_p50']:.0f} us at p50, latency {figures['p50']:.0f} us")
        self.figures = figures


@dataclass(slots=True)
class Measurement:
    """One candidate in one measurement.

    Attributes:
        what: ``latency``, ``subscribe`` or ``publish``.
        size: payload bytes.
        candidate: its name in the catalog.
        runs: the figures of each round, ``None`` where both tries were void.
        voids: why tries were void.
        disturbed: rounds whose figures are kept although the sender was late twice; they decide nothing.
    """

    what: str
    size: int
    candidate: str
    runs: list[Figures | None] = field(default_factory=list)
    voids: list[str] = field(default_factory=list)
    disturbed: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a result file."""
        good = [run for run in self.runs if run is not None]
        return {
            "what": self.what,
            "size": self.size,
            "candidate": self.candidate,
            "summary": summary(good) if good else None,
            "runs": self.runs,
            "voids": self.voids,
            "disturbed": self.disturbed,
        }


def window(size: int) -> int:
    """Messages on their way at most: far below the 32 MB at which Redis cuts a subscriber."""
    return max(4, min(16384, _WINDOW_BYTES // (size + 150)))


class Rounds:
    """All measurements of one backend."""

    def __init__(self, broker: RunningBroker, stage: Stage, scale: Scale, say: Say) -> None:
        self._broker, self._stage, self._scale, self._say = broker, stage, scale, say
        self._catalog: Catalog = catalog(broker.kind)
        self._logs = Logs(broker.env["MSIGHT_KAFKA_SERVERS"]) if broker.kind == "kafka" else None
        self._end = time.monotonic() + scale.budget
        self._left = 1 + 2 * len(scale.rounds)  # measurements that have not begun
        self.results: list[Measurement] = []

    def run(self) -> list[Measurement]:
        """Latency first, then throughput from the smallest size up."""
        self._latency()
        for size in self._scale.rounds:
            for what in ("subscribe", "publish"):
                self._throughput(what, size)
        return self.results

    def _latency(self) -> None:
        pairs = self._catalog.latency
        for subscriber, publisher in [(pair[1], pair[0]) for pair in pairs.values()]:
            self._stage.prepare("subscribe", subscriber)  # they import while others do
            self._stage.prepare("publish", publisher)

        def once(name: str, number: int) -> Figures:
            plan = Plan(
                f"bench.latency{number}",
                LATENCY_SIZE,
                self._scale.latency_seconds,
                self._scale.warm_up,
                rate=LATENCY_RATE,
            )
            if self._logs is not None:
                self._logs.make(plan.topic)
            figures = of_latency(*self._stage.run(*pairs[name], plan), LATENCY_SIZE)
            if is_disturbed(figures):
                raise DisturbedError(figures)
            return figures

        self._interleave("latency", LATENCY_SIZE, list(pairs), self._scale.latency_rounds, once)

    def _throughput(self, what: str, size: int) -> None:
        sides = self._catalog.subscribers if what == "subscribe" else self._catalog.publishers
        names = [name for name in sides if name in ALWAYS or size in self._scale.peers_at]

        def once(name: str, number: int) -> Figures:
            subscribing = what == "subscribe"
            figures = self._subscribe(name, sides[name], size) if subscribing else self._publish(sides[name], size)
            if figures["messages"] < self._scale.least:
                raise VoidError("No message came after the warm-up.")
            return figures

        self._interleave(what, size, names, self._scale.rounds[size], once)

    def _plan(self, size: int, topic: str = "") -> Plan:
        room = window(size)
        return Plan(topic or f"bench.s{size}", size, self._scale.seconds, self._scale.warm_up, room)

    def _subscribe(self, name: str, side: Side, size: int) -> Figures:
        slow = name == FRAMEWORK and size == SMALL
        if self._catalog.feeder is not None:
            plan = self._plan(size)
            if slow:
                plan = Plan(plan.topic, size, plan.seconds, plan.warm_up, window=max(4, plan.window // _SLOW_SHARE))
            _, received = self._stage.run(self._catalog.feeder, side, plan)
            return of_subscriber(received, size)
        count = self._scale.logged[size] // (_SLOW_SHARE if slow else 1)
        topic = f"bench.log{size}.{count}"
        if self._logs is not None and self._logs.make(topic):
            self._stage.run_publisher(self._catalog.publishers[CEILING], Plan(topic, size, messages=count))
        plan = Plan(topic, size, warm_up=min(0.02, self._scale.warm_up), messages=count, from_start=True)
        return of_subscriber(self._stage.run_subscriber(side, plan), size)

    def _publish(self, side: Side, size: int) -> Figures:
        if self._catalog.sink is not None:
            sent, _ = self._stage.run(side, self._catalog.sink, self._plan(size))
            return of_publisher(sent, size)
        topic = f"bench.in{size}"
        if self._logs is not None:
            self._logs.make(topic)
        plan = Plan(topic, size, self._scale.seconds, self._scale.warm_up)
        return of_publisher(self._stage.run_publisher(side, plan), size)

    def _interleave(
        self, what: str, size: int, names: list[str], rounds: int, once: Callable[[str, int], Figures]
    ) -> None:
        kept = {name: Measurement(what, size, name) for name in names}
        now = time.monotonic()
        share = _LATENCY_SHARE if what == "latency" else 1 / self._left
        until = now + max(0.0, self._end - now) * share
        self._left -= 1
        self.results += kept.values()
        for number in range(rounds):
            if number and time.monotonic() > until:
                self._say(f"{self._broker.kind} {what} {size} B: the time is up after {number} of {rounds} rounds")
                break
            for name in names if number % 2 == 0 else names[::-1]:  # who comes first changes with the rounds
                shown = "" if name == AGAIN else f"{self._broker.kind} {what} {size} B, round {number + 1} of {rounds}"
                if shown:
                    self._say(f"{shown}: {name}")
                kept[name].runs.append(self._twice(kept[name], name, number, once))

    def _twice(self, kept: Measurement, name: str, number: int, once: Callable[[str, int], Figures]) -> Figures | None:
        disturbed: Figures | None = None
        for _ in range(2):
            try:
                return once(name, number)
            except DisturbedError as error:
                disturbed, why = error.figures, str(error)
            except (VoidError, WorkerError) as error:
                why = str(error).strip().splitlines()[-1]
            kept.voids.append(why)
            self._say(f"  void: {self._broker.kind} {kept.what} {kept.size} B {name}: {why}")
        if disturbed is not None:
            kept.disturbed.append(number)
        return disturbed
