"""Iteration at a fixed rate, for sources."""

from __future__ import annotations

import asyncio
import math


class paced:  # noqa: N801 - called like a function
    """Iterate ``rate`` times a second, by the loop's clock and without drift: ``async for number in paced(30): yield read()``.

    Yields the number of each tick, from 0. Ticks missed while the program was busy are skipped, and so are their numbers.
    """

    def __init__(self, rate: float) -> None:
        """
        Args:
            rate: ticks a second.

        Raises:
            ValueError: ``rate`` is not a finite number above 0.
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise ValueError(f"rate must be a number of ticks a second above 0, not {rate!r}.")
        self._rate = rate
        self._number = -1
        self._begun = 0.0

    def __aiter__(self) -> paced:
        return self

    async def __anext__(self) -> int:
        now = asyncio.get_running_loop().time()
        if self._number < 0:
            self._begun = now
        self._number = max(self._number + 1, int((now - self._begun) * self._rate))
        await asyncio.sleep(max(0.0, self._begun + self._number / self._rate - now))
        return self._number
