"""What a process has used: time, processor time, memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple


class Mark(NamedTuple):
    """A point in a run: the clock (ns), processor time of this process (s) and messages so far."""

    at: int
    cpu: float
    messages: int


def mark(messages: int) -> Mark:
    """The point now."""
    return Mark(perf_counter_ns(), sum(os.times()[:2]) if sys.platform == "win32" else _cpu(), messages)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def forget_peak() -> None:
    """Begin a new peak of memory, where the kernel can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most resident memory of this process, since `forget_peak` where that works, else in all."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
