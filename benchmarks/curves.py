"""The curves of a full run: every candidate from little load to too much, and from small messages to large ones."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

from benchmarks.catalog import BUS, CEILING, CLIENT, FRAMEWORK, Catalog, catalog
from benchmarks.interleaving import Say
from benchmarks.logs import Logs
from benchmarks.scale import Scale
from msight_bus.bench.candidates import Side
from msight_bus.bench.curves import Pair, by_rate, by_size
from msight_bus.bench.stage import Stage
from msight_bus.brokers import RunningBroker

_NAMES = (CEILING, CLIENT, FRAMEWORK, BUS)
_RATE_SHARE = 0.6
"""Of the time for both curves."""


def curves(broker: RunningBroker, stage: Stage, scale: Scale, say: Say, seconds: float) -> dict[str, Any]:
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
        return {name: Pair(publisher, subscriber, stage, make_topic) for name, (publisher, subscriber) in sides.items()}

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
