"""Time, processor time and memory of this process."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple


class Mark(NamedTuple):
    """A point in a run: ``perf_counter_ns``, processor time of this process in seconds, and messages so far."""

    at: int
    cpu: float
    messages: int


def mark(messages: int) -> Mark:
    """Return the current point."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Mark(perf_counter_ns(), used.ru_utime + used.ru_stime, messages)


def forget_peak() -> None:
    """Reset the peak of resident memory, if the kernel supports that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak of resident memory of this process, since `forget_peak` if the kernel supports that."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
