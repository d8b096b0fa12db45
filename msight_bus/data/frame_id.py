"""Frame identifiers: unique and increasing, without coordination between processes."""

from __future__ import annotations

import os
import threading
import time

_EPOCH = 1_577_836_800_000_000_000  # 2020-01-01 UTC, in nanoseconds
_TICK_BITS = 20  # one tick is 2**20 ns, about 1 ms; 41 bits last until 2093
_COUNT_BITS = 6
_PROCESS_BITS = 16


class _FrameIds:
    """63 bits: 41 bits of time, 16 random bits of the process, 6 bits that count within one tick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0  # tick and count of the last identifier
        self._process = 0
        self.draw_process()

    def draw_process(self) -> None:
        """Draw new random bits; called in a forked child, which has a copy of its parent's state."""
        self._lock = threading.Lock()
        self._process = int.from_bytes(os.urandom(_PROCESS_BITS // 8), "big") << _COUNT_BITS

    def next(self) -> int:
        tick = (time.time_ns() - _EPOCH) >> _TICK_BITS
        with self._lock:
            # If the clock steps back, or at more than 64 frames a tick, use identifiers of later ticks.
            self._last = last = max(self._last + 1, tick << _COUNT_BITS)
        above = last >> _COUNT_BITS << (_COUNT_BITS + _PROCESS_BITS)
        return above | self._process | (last & ((1 << _COUNT_BITS) - 1))


_ids = _FrameIds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.draw_process)


def new_frame_id() -> int:
    """Return a positive 63-bit integer that increases within a process and, with synchronized clocks, across processes.

    Identifiers of two processes are equal only if both drew the same 16 random bits and have the same count in the same tick of
    about 1 ms.
    """
    return _ids.next()
