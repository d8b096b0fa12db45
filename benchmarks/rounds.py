"""All measurements on one broker: latency, throughput, many topics, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from benchmarks.catalog import CEILING, FRAMEWORK, FROZEN, MSIGHT, Catalog, catalog
from benchmarks.interleaving import DisturbedError, Interleaver, Measurement, Say
from benchmarks.logs import Logs
from benchmarks.many_topics import topic_of
from benchmarks.runner import PUBLISH, SUBSCRIBE, Runner
from benchmarks.scale import ALWAYS, MIDDLE, SMALL, Scale
from msight_bus.bench.figures import Figures, is_disturbed, of_latency, of_publisher, of_subscriber
from msight_bus.bench.jobs import Plan, VoidError, window_of
from msight_bus.bench.sides import Side
from msight_bus.brokers import RunningBroker

LATENCY_SIZE, LATENCY_RATE = 1024, 1000.0
FLOOD_RATE = 300.0
"""Messages of 128 KiB a second: fill a queue of 32 MiB in one second, and are below the capacity of each broker."""

_MOST_IN_FLIGHT = 16384
_SLOW_SHARE = 5
"""Share of the messages for a slow framework, so that its runs end in time."""

_SLOW_CHUNK = 8
"""Messages between two reads of the clock, for candidates that wait for each message."""


class Rounds:
    """All measurements of one backend."""

    def __init__(self, broker: RunningBroker, runner: Runner, scale: Scale, say: Say) -> None:
        self._broker, self._runner, self._scale = broker, runner, scale
        self._catalog: Catalog = catalog(broker.kind, scale.topics)
        self._logs = Logs(broker.env["MSIGHT_KAFKA_SERVERS"]) if broker.kind == "kafka" else None
        self._rounds = Interleaver(broker.kind, say)
        self._runs = 0

    def run(self) -> list[Measurement]:
        """Measure latency, then throughput by rising size; each has its share of the time."""
        steps: list[tuple[float, Callable[[], None]]] = [(5.0, self._latency)]
        for size in self._scale.rounds:
            share = 2.0 if size == SMALL else 0.6
            steps += [(share, partial(self._throughput, what, size)) for what in ("subscribe", "publish")]
        scale, found = self._scale, self._catalog
        last = (
            (scale.topics_rounds and found.topics, self._topics),
            (scale.flood_rounds and found.memory, self._memory),
            (scale.idle_rounds and found.idle, self._idle),
        )
        steps += [(0.75, step) for wanted, step in last if wanted]
        end = time.monotonic() + self._scale.budget
        left = sum(share for share, _ in steps)
        for share, step in steps:
            now = time.monotonic()
            self._rounds.until = now + max(0.0, end - now) * share / left
            left -= share
            step()
        return self._rounds.results

    def _topic(self, what: str) -> str:
        """Return a new topic, because some candidates read a log from its beginning."""
        self._runs += 1
        topic = f"bench.{what}{self._runs}"
        if self._logs is not None:
            self._logs.make(topic)
        return topic

    def _latency(self) -> None:
        pairs = {name: pair for name, pair in self._catalog.latency.items() if name not in self._scale.without}
        for publisher, subscriber in pairs.values():
            self._runner.prepare(SUBSCRIBE, subscriber)  # workers import concurrently
            self._runner.prepare(PUBLISH, publisher)

        def once(name: str) -> Figures:
            seconds, warm_up = self._scale.latency_seconds, self._scale.warm_up
            if name == MSIGHT and self._logs is not None:  # one flush per message: it falls behind
                seconds, warm_up = seconds / (2 * _SLOW_SHARE), 0.0
            plan = Plan(self._topic("latency"), LATENCY_SIZE, seconds, warm_up, rate=LATENCY_RATE)
            figures = of_latency(*self._runner.run(*pairs[name], plan), LATENCY_SIZE)
            if is_disturbed(figures):
                raise DisturbedError(figures)
            return figures

        self._rounds.measure("latency", LATENCY_SIZE, list(pairs), self._scale.latency_rounds, once)

    def _throughput(self, what: str, size: int) -> None:
        sides = self._catalog.subscribers if what == "subscribe" else self._catalog.publishers
        names = [name for name in sides if name in ALWAYS or size in self._scale.peers_at]

        def once(name: str) -> Figures:
            run = self._subscribe if what == "subscribe" else self._publish
            return self._enough(run(name, sides[name], size))

        names = [name for name in names if name not in self._scale.without]
        self._rounds.measure(what, size, names, self._scale.rounds[size], once)

    def _enough(self, figures: Figures) -> Figures:
        if figures["messages"] < self._scale.least:
            raise VoidError("No message arrived after the warm-up.")
        return figures

    def _plan(self, size: int, topic: str) -> Plan:
        return Plan(topic, size, self._scale.seconds, self._scale.warm_up, window_of(size, _MOST_IN_FLIGHT))

    def _subscribe(self, name: str, side: Side, size: int) -> Figures:
        slow = name == FRAMEWORK and size == SMALL
        if self._catalog.feeder is not None:
            plan = self._plan(size, f"bench.s{size}")
            if slow:
                plan = replace(plan, window=max(4, plan.window // _SLOW_SHARE))
            _, received = self._runner.run(self._catalog.feeder, side, plan)
            return of_subscriber(received, size)
        count = self._scale.logged[size] // (_SLOW_SHARE if slow else 1)
        topic = f"bench.log{size}.{count}"
        if self._logs is not None and self._logs.make(topic):
            self._runner.run_publisher(self._catalog.publishers[CEILING], Plan(topic, size, messages=count))
        plan = Plan(topic, size, warm_up=min(0.02, self._scale.warm_up), messages=count, from_start=True)
        return of_subscriber(self._runner.run_subscriber(side, plan), size)

    def _publish(self, name: str, side: Side, size: int) -> Figures:
        chunk = _SLOW_CHUNK if name == MSIGHT else 0
        if self._catalog.sink is not None:
            plan = replace(self._plan(size, f"bench.p{size}"), chunk=chunk)
            sent, _ = self._runner.run(side, self._catalog.sink, plan)
            return of_publisher(sent, size)
        topic = f"bench.in{size}"
        if self._logs is not None:
            self._logs.make(topic)
        plan = Plan(topic, size, self._scale.seconds, self._scale.warm_up, chunk=chunk)
        return of_publisher(self._runner.run_publisher(side, plan), size)

    def _topics(self) -> None:
        pairs = self._catalog.topics
        self._runner.dismiss()  # feeders keep their messages in memory

        def once(name: str) -> Figures:
            _, received = self._runner.run(*pairs[name], self._plan(SMALL, "bench.many"))
            return self._enough(of_subscriber(received, SMALL))

        self._rounds.measure("topics", SMALL, list(pairs), self._scale.topics_rounds, once)
        self._runner.dismiss()

    def _memory(self) -> None:
        """Measure the peaks of memory under a load that exceeds every consumer."""
        seconds = self._scale.flood_seconds

        def once(name: str) -> Figures:
            plan = Plan(self._topic("flood"), MIDDLE, seconds, warm_up=0.0, rate=FLOOD_RATE)
            observer = self._catalog.memory[name]
            if name == FROZEN:
                return self._runner.observe(observer, plan, meanwhile=self._frozen())
            return self._runner.observe(observer, plan, self._catalog.flooder)

        self._rounds.measure("memory", MIDDLE, list(self._catalog.memory), self._scale.flood_rounds, once)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        self._broker.freeze()
        try:
            yield
        finally:
            self._broker.thaw()

    def _idle(self) -> None:
        def once(name: str) -> Figures:
            topic = self._topic("idle")
            if self._logs is not None:
                self._logs.make(*(topic_of(topic, number) for number in range(self._scale.topics)))
            return self._runner.observe(self._catalog.idle[name], Plan(topic, 0, self._scale.idle_seconds, warm_up=0.0))

        self._rounds.measure("idle", 0, list(self._catalog.idle), self._scale.idle_rounds, once)
