"""Watching one side while something happens to it that is no stream of counted messages: a flood, a frozen broker, silence."""

from __future__ import annotations

import gc
from typing import Any, Protocol

from msight_bus.bench.board import SENT
from msight_bus.bench.candidates import Target
from msight_bus.bench.figures import Figures
from msight_bus.bench.jobs import Plan, wait_for_go
from msight_bus.bench.usage import forget_peak, mark, peak_bytes


class Observer(Protocol):
    """A side that tells its own figures."""

    async def open(self, target: Target) -> None:
        """Connect; returns when it could be used."""

    async def watch(self, plan: Plan) -> Figures:
        """Live through ``plan.seconds``, and tell what was seen."""

    async def close(self) -> None:
        """Release everything."""


async def observe(side: Observer, plan: Plan, target: Target, board: memoryview, tell: Any) -> Figures:
    """The side's own figures, its memory before and at most, and the share of a processor that it took."""
    await side.open(target)
    try:
        gc.collect()
        forget_peak()
        idle = peak_bytes()
        tell("ready")
        await wait_for_go(board)
        begun = mark(0)
        seen = await side.watch(plan)
        ended = mark(0)
        peak = peak_bytes()
        tell("watched")
        share = (ended.cpu - begun.cpu) / max(1e-9, (ended.at - begun.at) / 1e9)
        memory = {"idle_bytes": float(idle), "peak_bytes": float(peak), "above_bytes": float(peak - idle)}
        return {**memory, "cpu_share": share, **seen}
    finally:
        board[SENT] = 1
        await side.close()
