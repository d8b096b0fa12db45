"""The extent of a measurement: sizes, rounds, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.catalog import ASYNCIO, CONFLUENT_TUNED, MSIGHT, RUNS, ZENOH, ZMQ

SMALL, MIDDLE, LARGE = 128, 128 * 1024, 1_000_000
ALWAYS = ("ceiling", "bus", "ceiling again")
RATES = (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
"""Messages a second, each about twice the previous."""

SIZES = (64, 512, 4096, 32 * 1024, 256 * 1024, 1_000_000)


@dataclass(frozen=True, slots=True)
class Scale:
    """The extent of a measurement.

    Attributes:
        name: name of the extent.
        rounds: interleaved rounds of throughput by size.
        latency_rounds: interleaved rounds of latency.
        topics: number of topics of runs with many topics.
        topics_rounds: interleaved rounds of one and many topics.
        flood_rounds: interleaved rounds of memory.
        flood_seconds: seconds of load, or of a frozen broker.
        idle_rounds: rounds of many idle topics.
        idle_seconds: seconds of a round of idle topics.
        seconds: seconds of a throughput run, after its warm-up.
        latency_seconds: seconds of a latency run, after its warm-up.
        warm_up: seconds that are not measured.
        logged: messages that a Kafka subscriber reads, by size.
        peers_at: sizes at which other libraries run too; at other sizes only the ceiling and the bus.
        without: candidates that are omitted.
        rates: messages a second of the latency curve; empty: no curves.
        sizes: payload bytes of the curve of throughput.
        curve_seconds: seconds of a run of a curve, after its warm-up.
        budget: seconds for a backend, shared by its measurements; each has at least one round.
        least: smallest number of messages after the warm-up for a rate.
    """

    name: str
    rounds: Mapping[int, int] = field(default_factory=lambda: {SMALL: 5, MIDDLE: 5, LARGE: 5})
    latency_rounds: int = 10
    topics: int = 1000
    topics_rounds: int = 5
    flood_rounds: int = 2
    flood_seconds: float = 3.5
    idle_rounds: int = 1
    idle_seconds: float = 5.0
    seconds: float = 0.8
    latency_seconds: float = 1.2
    warm_up: float = 0.3
    logged: Mapping[int, int] = field(default_factory=lambda: {SMALL: 300_000, MIDDLE: 3000, LARGE: 400})
    peers_at: tuple[int, ...] = (SMALL,)
    without: tuple[str, ...] = ()
    rates: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    curve_seconds: float = 0.5
    budget: float = 480.0
    least: int = 1


FULL = Scale("full", rates=RATES, sizes=SIZES)
QUICK = Scale(
    "quick",
    rounds={SMALL: 3, MIDDLE: 1, LARGE: 1},
    latency_rounds=2,
    topics_rounds=1,
    flood_rounds=0,
    idle_rounds=0,
    seconds=0.4,
    latency_seconds=1.0,
    warm_up=0.2,
    logged={SMALL: 120_000, MIDDLE: 1500, LARGE: 200},
    without=(RUNS, ASYNCIO, MSIGHT, CONFLUENT_TUNED, ZMQ, ZENOH),
    budget=50.0,
)
SMOKE = Scale(
    "smoke",
    rounds={SMALL: 1},
    latency_rounds=1,
    topics=20,
    topics_rounds=1,
    flood_rounds=1,
    flood_seconds=0.2,
    idle_seconds=1.2,
    seconds=0.05,
    latency_seconds=0.1,
    warm_up=0.0,
    logged={SMALL: 5000},
    budget=30.0,
    least=0,
)
