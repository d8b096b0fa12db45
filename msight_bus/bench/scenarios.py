"""Latency and throughput of the bus on the user's own broker."""

from __future__ import annotations

import secrets

from msight_bus.bench.figures import Figures, of_latency, of_publisher, of_subscriber
from msight_bus.bench.jobs import Plan, window_of
from msight_bus.bench.runner import Runner
from msight_bus.bench.sides import LoopName, Side

PUBLISHER, SUBSCRIBER = "msight_bus.bench.sides:BusPublisher", "msight_bus.bench.sides:BusSubscriber"
TOPICS = "msight-bench."
"""Prefix of the names of topics."""

_FASTEST = 1000.0
_MOST_BYTES_A_SECOND = 20_000_000


def rate_for(size: int) -> float:
    """Return the messages a second of a latency run: 1,000, but at most 20 MB a second and at least 1."""
    return min(_FASTEST, max(1.0, _MOST_BYTES_A_SECOND // size))


def latency(runner: Runner, size: int, rate: float, seconds: float, loop: LoopName) -> Figures:
    """Measure the one-way latency of payloads of ``size`` bytes at ``rate`` a second, in an open loop.

    Raises:
        VoidError: messages were lost or duplicated.
        WorkerError: a side failed.
    """
    plan = Plan(_topic(), size, seconds, min(1.0, seconds / 4), rate=rate)
    return of_latency(*runner.run(*_sides(loop), plan), size)


def throughput(runner: Runner, size: int, seconds: float, loop: LoopName) -> Figures:
    """Measure the messages a second from one publisher to one subscriber, without loss.

    Raises:
        VoidError: messages were lost or duplicated.
        WorkerError: a side failed.
    """
    sent, received = runner.run(*_sides(loop), Plan(_topic(), size, seconds, min(0.5, seconds / 4), window_of(size)))
    sender = of_publisher(sent, size)
    peak = {"publisher_cpu_us": sender["cpu_us"], "publisher_peak_bytes": sender["peak_bytes"]}
    return {**of_subscriber(received, size), **peak}


def _topic() -> str:
    return f"{TOPICS}{secrets.token_hex(4)}"


def _sides(loop: LoopName) -> tuple[Side, Side]:
    return Side(PUBLISHER, loop=loop), Side(SUBSCRIBER, loop=loop)
