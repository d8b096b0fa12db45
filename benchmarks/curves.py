"""The curves of a full run: latency as the rate rises until a candidate is saturated, throughput as messages grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from benchmarks.catalog import BUS, CEILING, CLIENT, FRAMEWORK, Catalog, catalog
from benchmarks.interleaving import Say
from benchmarks.logs import Logs
from benchmarks.runner import Runner
from benchmarks.scale import Scale
from msight_bus.bench.figures import Figures, of_latency, of_publisher, of_subscriber
from msight_bus.bench.jobs import Plan, VoidError, window_of
from msight_bus.bench.sides import Side
from msight_bus.bench.workers import WorkerError
from msight_bus.brokers import RunningBroker

_NAMES = (CEILING, CLIENT, FRAMEWORK, BUS)
_RATE_SHARE = 0.6
"""Of the time for both curves."""

RATE_CURVE_SIZE = 1024

HELD = 0.9
"""A rate is held if the subscriber got at least this part of it."""

HOPELESS = 0.7
"""Where less than this part of a rate came, trying again only costs time."""

SATURATED_US = {"p99": 100_000.0, "p50": 25_000.0}
"""From these on, in microseconds, messages queue up: more load only makes the queue longer. A machine that stalled for
once reaches the first and not the second."""

_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A publisher and a subscriber that understand each other, at one broker.

    Attributes:
        publisher: the sending side.
        subscriber: the receiving side.
        runner: where they run.
        make_topic: gives the topic of a run by a word for it; on a broker that wants topics made, makes it.
    """

    publisher: Side
    subscriber: Side
    runner: Runner
    make_topic: Callable[[str], str]


def by_rate(pairs: Mapping[str, Pair], rates: Sequence[int], seconds: float, until: float, say: Say) -> dict[str, Any]:
    """One-way latency of each pair, open loop, rate by rate until it is saturated.

    All pairs run at a rate before any runs at the next, so that what disturbs the machine meets all of them. ``until`` is
    the `time.monotonic` after which no further rate begins.
    """
    curves: dict[str, Any] = {name: {"points": [], "saturated": False, "end": ""} for name in pairs}
    for rate in rates:
        for name, pair in pairs.items():
            curve = curves[name]
            if curve["end"]:
                continue
            if time.monotonic() > until:
                curve["end"] = "the time was up"
                continue
            say(f"latency at {rate:,}/s: {name}")
            point, why = _one_rate(pair, rate, seconds)
            if why and (point is None or point["held"] > HOPELESS * rate):  # once more: it may have been the machine
                point, why = _one_rate(pair, rate, seconds)
            curve["points"] += [point] if point else []
            curve["saturated"], curve["end"] = bool(point and why), why
    return curves


def _one_rate(pair: Pair, rate: int, seconds: float) -> tuple[Figures | None, str]:
    """The figures at a rate, if nothing was lost, and why the rate is too high, if it is."""
    topic = pair.make_topic(f"rate{rate}")
    plan = Plan(topic, RATE_CURVE_SIZE, seconds, seconds / 4, rate=float(rate), patience=_PATIENCE)
    try:
        sent, received = pair.runner.run(pair.publisher, pair.subscriber, plan)
    except (VoidError, WorkerError) as error:
        return None, f"{rate:,}/s: {str(error).strip().splitlines()[-1]}"
    found = of_latency(sent, received, plan.size)
    came = of_subscriber(received, plan.size)["rate"]
    point = {"rate": float(rate), "held": came, **found}
    if came < HELD * rate:
        return point, f"{rate:,}/s was not held, {came:,.0f}/s came"
    if all(found[name] > most for name, most in SATURATED_US.items()):
        return point, f"{rate:,}/s has a p99 of {found['p99'] / 1e3:,.0f} ms"
    return point, ""


def by_size(pairs: Mapping[str, Pair], sizes: Sequence[int], seconds: float, until: float, say: Say) -> dict[str, Any]:
    """Messages a second from publisher to subscriber with nothing lost, size by size, as `by_rate`."""
    curves: dict[str, Any] = {name: {"points": [], "end": ""} for name in pairs}
    for size in sizes:
        for name, pair in pairs.items():
            if time.monotonic() > until:
                curves[name]["end"] = "the time was up"
                continue
            say(f"throughput of {size:,} B: {name}")
            point, why = _one_size(pair, size, seconds)
            if why:
                point, why = _one_size(pair, size, seconds)
            curves[name]["points"] += [point] if point else []
            curves[name]["end"] = why or curves[name]["end"]
    return curves


def _one_size(pair: Pair, size: int, seconds: float) -> tuple[Figures | None, str]:
    """The figures of a size, or why there are none."""
    plan = Plan(pair.make_topic(f"size{size}"), size, seconds, seconds / 4, window_of(size), patience=_PATIENCE)
    try:
        sent, received = pair.runner.run(pair.publisher, pair.subscriber, plan)
    except (VoidError, WorkerError) as error:
        return None, f"{size:,} B: {str(error).strip().splitlines()[-1]}"
    found = of_subscriber(received, size)
    if not found["messages"]:
        return None, f"{size:,} B: no message came after the warm-up"
    sender = of_publisher(sent, size)
    return {"size": float(size), **found, "publisher_cpu_us": sender["cpu_us"]}, ""


def curves(broker: RunningBroker, runner: Runner, scale: Scale, say: Say, seconds: float) -> dict[str, Any]:
    """Both curves of a backend, within about ``seconds``; from publisher to subscriber, each in a process of its own."""
    found = catalog(broker.kind, scale.topics)
    logs = Logs(broker.env["MSIGHT_KAFKA_SERVERS"]) if broker.kind == "kafka" else None
    runs = count()

    def make_topic(what: str) -> str:
        topic = f"bench.curve{next(runs)}.{what}"
        if logs is not None:
            logs.make(topic)
        return topic

    def pairs(sides: dict[str, tuple[Side, Side]]) -> dict[str, Pair]:
        return {
            name: Pair(publisher, subscriber, runner, make_topic) for name, (publisher, subscriber) in sides.items()
        }

    def tell(line: str) -> None:
        say(f"{broker.kind} {line}")

    begun = time.monotonic()
    rates = {name: found.latency[name] for name in _NAMES}
    sizes = {name: _fast(found, name) for name in _NAMES}
    return {
        "rate": by_rate(pairs(rates), scale.rates, scale.curve_seconds, begun + seconds * _RATE_SHARE, tell),
        "size": by_size(pairs(sizes), scale.sizes, scale.curve_seconds, begun + seconds, tell),
    }


def _fast(found: Catalog, name: str) -> tuple[Side, Side]:
    """Publisher and subscriber of a candidate that understand each other; the publisher is the one for many messages."""
    publisher, subscriber = found.latency[name]
    return found.publishers.get(name, publisher), subscriber
