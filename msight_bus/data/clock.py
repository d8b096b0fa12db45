"""The clock by which data is stamped: the machine's, or a simulation's while one runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_clocks: list[Callable[[], float]] = []


def now() -> float:
    """POSIX seconds."""
    return _clocks[-1]() if _clocks else time.time()


@contextmanager
def stamp_data_by(clock: Callable[[], float]) -> Iterator[None]:
    """Make ``clock``, in POSIX seconds, the clock of all data of this process while the context lasts.

    It holds for every thread: data is often made in threads that a simulation knows nothing of.
    """
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.remove(clock)
