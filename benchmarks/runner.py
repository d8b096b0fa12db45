"""Additional runs of a comparison: one side alone, and a side under load, with a frozen broker, or idle."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from msight_bus.bench import runner
from msight_bus.bench.figures import Figures
from msight_bus.bench.jobs import GO, SENT, Plan, Received, Sent, wait_for_go
from msight_bus.bench.runner import PUBLISH, SUBSCRIBE
from msight_bus.bench.sides import Side, Target
from msight_bus.bench.usage import forget_peak, mark, peak_bytes

_OBSERVE = f"{__name__}:observe"


class Observer(Protocol):
    """A side that returns its own figures."""

    async def open(self, target: Target) -> None:
        """Connect; return when the side is ready."""

    async def watch(self, plan: Plan) -> Figures:
        """Wait for ``plan.seconds`` and return figures."""

    async def close(self) -> None:
        """Disconnect."""


async def observe(side: Observer, plan: Plan, target: Target, counters: memoryview, tell: Any) -> Figures:
    """Return the side's figures, its memory before the run and at the peak, and its share of a processor."""
    await side.open(target)
    try:
        gc.collect()
        forget_peak()
        idle = peak_bytes()
        tell("ready")
        await wait_for_go(counters)
        begun = mark(0)
        seen = await side.watch(plan)
        ended = mark(0)
        peak = peak_bytes()
        tell("watched")
        share = (ended.cpu - begun.cpu) / max(1e-9, (ended.at - begun.at) / 1e9)
        memory = {"idle_bytes": float(idle), "peak_bytes": float(peak), "above_bytes": float(peak - idle)}
        return {**memory, "cpu_share": share, **seen}
    finally:
        counters[SENT] = 1
        await side.close()


class Runner(runner.Runner):
    """The bus's `Runner`, and runs of one side."""

    def run_publisher(self, publisher: Side, plan: Plan) -> Sent:
        """Run a publisher without a subscriber, on a broker with persistence."""
        self.counters.clear()
        worker = self.prepare(PUBLISH, publisher)
        worker.begin(plan)
        worker.expect("ready")
        self.counters.view[GO] = 1
        sent: Sent = worker.expect("done")
        return sent

    def run_subscriber(self, subscriber: Side, plan: Plan) -> Received:
        """Run a subscriber on ``plan.messages`` stored messages."""
        self.counters.clear()
        self.counters.view[SENT] = plan.messages
        worker = self.prepare(SUBSCRIBE, subscriber)
        worker.begin(plan)
        worker.expect("ready")
        received: Received = worker.expect("done")
        return received

    def observe(
        self,
        observer: Side,
        plan: Plan,
        publisher: Side | None = None,
        meanwhile: AbstractContextManager[Any] | None = None,
    ) -> Figures:
        """Return the figures of ``observer`` while ``publisher`` sends, or within the context ``meanwhile``.

        Raises:
            WorkerError: a side failed.
        """
        self.counters.clear()
        watching = self.prepare(_OBSERVE, observer)
        sending = None if publisher is None else self.prepare(PUBLISH, publisher)
        self.make_ready(plan, watching)
        if sending is not None:
            self.make_ready(plan, sending, watching)
        with meanwhile or nullcontext():
            self.counters.view[GO] = 1
            found = self.result(watching, "watched")
        sent = None if sending is None else self.result(sending)
        if not isinstance(found, Exception):
            found = self.result(watching)
        for one in (found, sent):
            if isinstance(one, Exception):
                raise one
        figures: Figures = found
        return figures
