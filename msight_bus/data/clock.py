"""The clock of timestamps in data: the system clock, or the virtual clock of a running simulation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_clocks: list[Callable[[], float]] = []


def now() -> float:
    """Return the time in POSIX seconds."""
    return _clocks[-1]() if _clocks else time.time()


@contextmanager
def stamp_data_by(clock: Callable[[], float]) -> Iterator[None]:
    """Use ``clock`` for the timestamps of all data created in this process, in every thread, while the context is open.

    Args:
        clock: returns POSIX seconds.
    """
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.remove(clock)
