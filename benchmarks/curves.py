"""The curves of a full run: latency by rate, up to saturation, and throughput by message size."""

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
"""Smallest share of a rate that the subscriber must receive."""

HOPELESS = 0.7
"""Share of a rate below which a run is not repeated."""

SATURATED_US = {"p99": 100_000.0, "p50": 25_000.0}
"""Latencies in microseconds from which a candidate is saturated; a single stall of the machine reaches only the first."""

_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A publisher and a subscriber with the same format, on one broker.

    Attributes:
        publisher: the sending side.
        subscriber: the receiving side.
        runner: runs both sides.
        make_topic: returns the topic of a run, and creates the topic on Kafka.
    """

    publisher: Side
    subscriber: Side
    runner: Runner
    make_topic: Callable[[str], str]


def by_rate(pairs: Mapping[str, Pair], rates: Sequence[int], seconds: float, until: float, say: Say) -> dict[str, Any]:
    """Measure the one-way latency of each pair in an open loop, at rising rates up to saturation.

    All pairs run at one rate before the next, so that a disturbance of the machine affects all. ``until`` is the
    `time.monotonic` after which no further rate starts.
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
            if why and (
                point is None or point["held"] > HOPELESS * rate
            ):  # repeat: the machine can have been disturbed
                point, why = _one_rate(pair, rate, seconds)
            curve["points"] += [point] if point else []
            curve["saturated"], curve["end"] = bool(point and why), why
    return curves


def _one_rate(pair: Pair, rate: int, seconds: float) -> tuple[Figures | None, str]:
    """Return the figures at a rate unless messages were lost, and the reason if the rate is too high."""
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
        return point, f"{rate:,}/s was not reached, {came:,.0f}/s arrived"
    if all(found[name] > most for name, most in SATURATED_US.items()):
        return point, f"{rate:,}/s has a p99 of {found['p99'] / 1e3:,.0f} ms"
    return point, ""


def by_size(pairs: Mapping[str, Pair], sizes: Sequence[int], seconds: float, until: float, say: Say) -> dict[str, Any]:
    """Measure the messages a second from publisher to subscriber without loss, by size; see `by_rate`."""
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
    """Return the figures of a size, or the reason why there are none."""
    plan = Plan(pair.make_topic(f"size{size}"), size, seconds, seconds / 4, window_of(size), patience=_PATIENCE)
    try:
        sent, received = pair.runner.run(pair.publisher, pair.subscriber, plan)
    except (VoidError, WorkerError) as error:
        return None, f"{size:,} B: {str(error).strip().splitlines()[-1]}"
    found = of_subscriber(received, size)
    if not found["messages"]:
        return None, f"{size:,} B: no message arrived after the warm-up"
    sender = of_publisher(sent, size)
    return {"size": float(size), **found, "publisher_cpu_us": sender["cpu_us"]}, ""


def curves(broker: RunningBroker, runner: Runner, scale: Scale, say: Say, seconds: float) -> dict[str, Any]:
    """Measure both curves of a backend within about ``seconds``, with publisher and subscriber in separate processes."""
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
    """Return publisher and subscriber of a candidate with the same format; the publisher is the one for throughput."""
    publisher, subscriber = found.latency[name]
    return found.publishers.get(name, publisher), subscriber
