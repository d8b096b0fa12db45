"""Measure the cost of nodes: source -> echo -> sink as nodes, and as coroutines with `publisher()` and `async for`.

Both run alternately in one process, on one bus and one broker; the ratio of a round is that of two consecutive runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.measuring import save
from msight_bus import Bus, NodeConfig, ProcessingNode, SinkNode, SourceNode, brokers, connect, run
from msight_bus.bench.machine import describe, in_words, versions
from msight_bus.nodes import run_until
from msight_bus.settings import BusSettings

BACKENDS = ("redis", "nats", "memory", "kafka")
TARGETS = {"redis": 0.6, "nats": 0.6, "memory": 0.6, "kafka": 0.5}
"""Smallest accepted ratio of the rate of nodes to the rate of coroutines."""

CONCURRENCY = (1, 8)
SIZE = 128
WINDOW = 1000
"""Maximum number of messages in flight, below the bound of a queue."""

_EVERY = 100
_WITHIN = 120.0
Figures = dict[str, float]


class Pace:
    """Limits a source to `WINDOW` messages in flight, and measures the messages after a warm-up.

    Args:
        messages: total number of messages; a tenth of them is the warm-up.
        hertz: messages a second; 0: as many as the window permits.
    """

    def __init__(self, messages: int, hertz: float = 0.0) -> None:
        self.messages, self._hertz = messages, hertz
        self.sent = self.came = 0
        self.done = asyncio.Event()
        self._warm_up = messages // 10
        self._room = asyncio.Event()
        self._due = time.perf_counter()
        self._latencies: list[float] = []
        self._ages: list[float] = []

    async def next(self) -> bool:
        """Wait until the next `every` messages can be sent; return whether messages are left."""
        if self._hertz:
            self._due += 1 / self._hertz
            await asyncio.sleep(self._due - time.perf_counter())
            self._ages.append(time.perf_counter())
        else:
            while self.sent - self.came > WINDOW:
                self._room.clear()
                await self._room.wait()
        return self.sent < self.messages

    @property
    def every(self) -> int:
        """Number of messages to send before `next` is awaited again."""
        return 1 if self._hertz else _EVERY

    def take(self) -> None:
        """Count a message that the sink received."""
        self.came += 1
        if self._hertz:
            self._latencies.append(time.perf_counter() - self._ages[self.came - 1])
        if self.came % _EVERY == 0:
            self._room.set()
        if self.came == self._warm_up:
            self._begun = time.perf_counter(), time.process_time()
        elif self.came == self.messages:
            self._seconds = time.perf_counter() - self._begun[0]
            self._cpu = time.process_time() - self._begun[1]
            self.done.set()

    def figures(self) -> Figures:
        """Return messages a second, processor time a message (us), and for a paced stream the latency (us)."""
        measured = self.messages - self._warm_up
        figures = {"rate": measured / self._seconds, "cpu_us": self._cpu / measured * 1e6}
        if self._latencies:
            figures["p50_us"] = median(self._latencies[self._warm_up :]) * 1e6
        return figures


async def bare(bus: Bus, topic: str, pace: Pace) -> None:
    """Run the three coroutines as a user of the bus writes them."""
    payload = bytes(SIZE)
    group = "bare" if bus.capabilities.persistence else None

    async def source() -> None:
        async with bus.publisher(f"{topic}.a") as publisher:
            while await pace.next():
                for _ in range(pace.every):
                    pace.sent += 1
                    await publisher.send(payload)

    async def process(data: bytes) -> bytes:
        return data

    async def on_message(data: bytes) -> None:
        pace.take()

    async def echo() -> None:
        async with bus.publisher(f"{topic}.b") as publisher:
            async for message in frames:
                await publisher.send(await process(message.payload))

    async def sink() -> None:
        async for message in echoes:
            await on_message(message.payload)

    async with AsyncExitStack() as stack:
        frames = await stack.enter_async_context(bus.subscribe(f"{topic}.a", group_id=group))
        echoes = await stack.enter_async_context(bus.subscribe(f"{topic}.b", group_id=group and f"{group}-sink"))
        tasks = [asyncio.create_task(each()) for each in (sink, echo, source)]
        await pace.done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Source(SourceNode):
    """Yields items at the pace."""

    pace: Pace

    async def stream(self):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Yield the items."""
        payload = bytes(SIZE)
        pace = self.pace
        while await pace.next():
            for _ in range(pace.every):
                pace.sent += 1
                yield payload


class Echo(ProcessingNode):
    """Publishes each input."""

    async def process(self, data: bytes) -> bytes:
        """Return the input."""
        return data


class Sink(SinkNode):
    """Counts inputs."""

    pace: Pace

    async def on_message(self, data: bytes) -> None:
        """Count an input."""
        self.pace.take()


def nodes(concurrency: int) -> Callable[[Bus, str, Pace], Awaitable[None]]:
    """Run the same as nodes; ``concurrency``: inputs that each node handles at a time."""

    async def run_pipeline(bus: Bus, topic: str, pace: Pace) -> None:
        name = topic.replace(".", "-")
        a, b = f"{topic}.a", f"{topic}.b"
        source = Source(NodeConfig(name=f"{name}-source", publish_topic_name=a))
        echo = Echo(
            NodeConfig(name=f"{name}-echo", subscribe_topic_name=a, publish_topic_name=b, concurrency=concurrency)
        )
        sink = Sink(NodeConfig(name=f"{name}-sink", subscribe_topic_name=b, concurrency=concurrency))
        source.pace = sink.pace = pace
        await run_until(bus, source, echo, sink, stop=pace.done)

    return run_pipeline


ARMS = {"bare": bare, **{f"nodes, concurrency {n}": nodes(n) for n in CONCURRENCY}}


async def _rounds(backend: str, rounds: int, messages: int, hertz: float, say: Callable[[str], None]) -> Any:
    found: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    async with connect(BusSettings(backend=backend)) as bus:
        for number in range(rounds):
            arms = list(ARMS.items())[:: 1 if number % 2 == 0 else -1]
            for place, (arm, pipeline) in enumerate(arms):
                pace = Pace(messages, hertz)
                async with asyncio.timeout(_WITHIN):
                    await pipeline(bus, f"bench{time.time_ns()}.r{number}x{place}", pace)
                found[arm].append(pace.figures())
                say(f"{backend} round {number + 1} of {rounds}: {arm}, {found[arm][-1]['rate']:,.0f}/s")
    return found


def measure(
    chosen: Sequence[str], rounds: int, messages: int, hertz: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run every arm once a round, on brokers started for this measurement."""
    result: dict[str, Any] = {
        "scale": "nodes",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "messages": messages,
        "hertz": hertz,
        "machine": describe(),
        "versions": versions(),
        "brokers": {},
        "rows": {},
    }
    for backend in chosen:
        if backend == "memory":
            result["rows"][backend] = run(_rounds(backend, rounds, messages, hertz, say))
            continue
        with brokers.start(backend) as broker:  # type: ignore[arg-type]
            os.environ.update(broker.env)
            result["brokers"][backend] = f"{broker.name} {broker.version}"
            result["rows"][backend] = run(_rounds(backend, rounds, messages, hertz, say))
    return result


def show(result: dict[str, Any]) -> None:
    """Print the medians and the ratios round by round."""
    paced = bool(result["hertz"])
    figure = "cpu_us" if paced else "rate"
    for backend, arms in result["rows"].items():
        base = arms["bare"]
        for arm, runs in arms.items():
            ratios = sorted(run[figure] / other[figure] for run, other in zip(runs, base, strict=True))
            line = f"{backend:8}{arm:22}{median(run['rate'] for run in runs):>12,.0f}/s"
            line += f"{median(run['cpu_us'] for run in runs):>9.2f} us CPU"
            if paced:
                line += f"{median(run['p50_us'] for run in runs):>9.0f} us p50"
            if arm != "bare":
                line += f"   x {median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"
                if not paced:
                    cpu = median(other["cpu_us"] / run["cpu_us"] for run, other in zip(runs, base, strict=True))
                    line += f", by processor time x {cpu:.2f}; target {TARGETS[backend]:.2f}"
            typer.echo(line)
    typer.echo(f"\n{', '.join(result['brokers'].values())}; {in_words(result['machine'])}")


def main(
    backend: Annotated[
        list[str] | None, typer.Option(help="redis, nats, memory or kafka; repeatable; default: all.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each arm runs once a round.")] = 5,
    messages: Annotated[int, typer.Option(min=100, help="Messages of a run.")] = 60_000,
    hertz: Annotated[float, typer.Option(min=0, help="Messages a second; 0: as fast as possible.")] = 0.0,
    path: Annotated[Path | None, typer.Option("--json", help="File for the result.")] = None,
) -> None:
    """Compare source -> echo -> sink as nodes with coroutines, in one process."""
    result = measure(backend or BACKENDS, rounds, messages, hertz, lambda line: typer.echo(line, err=True))
    show(result)
    if path is not None:
        typer.echo(f"written to {save(result, path)}")


if __name__ == "__main__":
    typer.run(main)
