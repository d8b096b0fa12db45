"""Measures the bus alone on somebody's own broker: latency, throughput, sensors."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from msight_bus.bench.candidates import Side
from msight_bus.bench.curves import room
from msight_bus.bench.figures import Figures, of_latency, of_publisher, of_subscriber
from msight_bus.bench.jobs import Plan
from msight_bus.bench.profiles import Stream
from msight_bus.bench.stage import Stage

SUBSCRIBER = Side("msight_bus.bench.bus_sides:BusSubscriber")
PUBLISHER = Side("msight_bus.bench.bus_sides:BusPublisher")


def fresh_topic() -> str:
    """A topic that nobody else uses."""
    return f"msight-bench.{secrets.token_hex(4)}"


def sides(loop: str) -> tuple[Side, Side]:
    """Publisher and subscriber on an event loop, ``uvloop`` or ``asyncio``."""
    return Side(PUBLISHER.path, loop=loop), Side(SUBSCRIBER.path, loop=loop)  # type: ignore[arg-type]


def latency(stage: Stage, stream: Stream, seconds: float, topic: str, loop: str = "uvloop") -> Figures:
    """One-way latency of a stream at its own rate, in an open loop.

    Raises:
        VoidError: messages were lost, or came twice.
        WorkerError: a side failed.
    """
    plan = Plan(topic, stream.size, seconds, min(1.0, seconds / 4), rate=stream.rate)
    sent, received = stage.run(*sides(loop), plan)
    sender = of_publisher(sent, stream.size)
    return {**of_latency(sent, received, stream.size), "publisher_cpu_us": sender["cpu_us"]}


def together(
    env: Mapping[str, str], streams: Sequence[Stream], seconds: float, topic: str, loop: str = "uvloop"
) -> dict[str, Figures]:
    """Latencies of streams that run at the same time, each in two processes of its own."""

    def one(stream: Stream) -> Figures:
        with Stage(env) as stage:
            return latency(stage, stream, seconds, f"{topic}.{stream.name}", loop)

    with ThreadPoolExecutor(len(streams)) as pool:
        running = {stream.name: pool.submit(one, stream) for stream in streams}
        return {name: future.result() for name, future in running.items()}


def throughput(stage: Stage, size: int, seconds: float, topic: str, loop: str = "uvloop") -> Figures:
    """Messages a second from one publisher to one subscriber, as many as arrive with nothing lost.

    Raises:
        VoidError: messages were lost, or came twice.
        WorkerError: a side failed.
    """
    sent, received = stage.run(*sides(loop), Plan(topic, size, seconds, min(0.5, seconds / 4), room(size)))
    sender = of_publisher(sent, size)
    peak = {"publisher_cpu_us": sender["cpu_us"], "publisher_peak_bytes": sender["peak_bytes"]}
    return {**of_subscriber(received, size), **peak}
