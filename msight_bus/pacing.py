"""Iterate at a rate: for sources, and for whoever publishes by the clock."""

from __future__ import annotations

import asyncio
import math


class paced:  # noqa: N801 - called like a function
    """Iterate ``rate`` times a second, by the loop's clock and without drift: ``async for number in paced(30): yield read()``.

    Gives the number of the tick, from 0. Ticks that pass while the program is busy are left out, and their numbers with them.
    """

    def __init__(self, rate: float) -> None:
        """
        Raises:
            ValueError: ``rate`` is not a number above 0.
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise ValueError(f"rate must be a number of times a second above 0, not {rate!r}.")
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
