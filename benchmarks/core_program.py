"""Run a row of ``benchmarks.core`` in its own process: ``python -P core_program.py '{"do": "receive", ...}'``.

PYTHONPATH selects the measured `msight_bus`, which can be an old version: the program uses only functions that all versions have,
lists and patterns excepted, and nothing else of this repository. It prints ``ready`` after subscribing, and its figures as JSON
at the end.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import resource
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

import msight_bus

WINDOW = 1000
"""Maximum number of messages in flight on the memory backend, below the bound of a queue."""

_COUNT_WRITTEN_EVERY = 64


class Clock:
    """Counts messages and measures those after the warm-up.

    Args:
        messages: total number of messages.
        progress: file of eight bytes for the count, which the feeding process reads.
    """

    def __init__(self, messages: int, progress: str) -> None:
        self.count = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._messages, self._warm_up = messages, messages // 10
        with Path(progress).open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)

    def add(self) -> None:
        """Count one message."""
        self.count += 1
        if self.count % _COUNT_WRITTEN_EVERY == 0:
            self._shared[:] = self.count.to_bytes(8, "little")
        if self.count == self._warm_up:
            self._begun = time.perf_counter(), time.process_time()
        elif self.count == self._messages:
            self.done.set_result(None)

    def figures(self) -> dict[str, float]:
        """Return messages a second, processor time a message (µs) and peak memory (MiB)."""
        seconds, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        measured = self._messages - self._warm_up
        return {"rate": measured / seconds, "cpu_us": cpu / measured * 1e6, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


async def _receive(bus: Any, row: dict[str, Any], clock: Clock, stack: AsyncExitStack) -> list[asyncio.Task[None]]:
    """Subscribe to every topic, with a task per subscription that counts messages."""

    async def count(messages: Any) -> None:
        async for message in messages:
            message.payload  # noqa: B018 - who takes a message reads it
            clock.add()

    names = row["topic_names"]
    entries = {"list": [names], "pattern": [names[0].rpartition(".")[0] + ".*"]}.get(row["through"], names)
    subscriptions = [await stack.enter_async_context(bus.subscribe(entry)) for entry in entries]
    return [asyncio.create_task(count(messages)) for messages in subscriptions]


async def _publish(bus: Any, row: dict[str, Any], clock: Clock, stack: AsyncExitStack) -> None:
    """Publish the messages to the topics in turn; return when the broker has received all."""
    topics, sizes = row["topic_names"], row["sizes"]
    block = bytes(range(256)) * 4
    payloads = [block[:size] for size in sizes]
    by_handle = row["through"] == "publisher"
    receives, runs = row["do"] == "both", row["runs"]
    senders = [await stack.enter_async_context(bus.publisher(topic)) for topic in topics] if by_handle else []
    for number in range(row["messages"]):
        payload = payloads[number % len(payloads)]
        if by_handle:
            await senders[number // runs % len(senders)].send(payload)
        else:
            await bus.publish(topics[number // runs % len(topics)], payload)
        if not receives:
            clock.add()
        elif number % 100 == 0:
            while number - clock.count > WINDOW:
                await asyncio.sleep(0)
    async with bus.publisher(topics[0]) as last:  # leaving confirms all earlier messages
        await last.send(b"")


async def _run(row: dict[str, Any]) -> None:
    clock = Clock(row["messages"], row["progress"])
    # Closing is not measured: the process ends here.
    stack = AsyncExitStack()
    bus = await stack.enter_async_context(msight_bus.connect())
    tasks = [] if row["do"] == "publish" else await _receive(bus, row, clock, stack)
    print("ready", flush=True)
    if row["do"] != "receive":
        await _publish(bus, row, clock, stack)
    await clock.done
    figures = clock.figures()
    assert not any(task.done() for task in tasks)
    print(json.dumps({**figures, "package": msight_bus.__file__}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(json.loads(sys.argv[1])))
