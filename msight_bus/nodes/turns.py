"""Order among handlers that run at the same time: they publish in the order in which they took their inputs."""

from __future__ import annotations

import asyncio


class Turn:
    """One handler's place in the order."""

    __slots__ = ("_before", "_ended")

    def __init__(self, before: asyncio.Future[None] | None, ended: asyncio.Future[None] | None) -> None:
        self._before = before
        self._ended = ended

    async def begins(self) -> None:
        """Wait until the turn before this one has ended."""
        if self._before is not None and not self._before.done():
            await self._before

    def end(self) -> None:
        """Let the next one begin, once those before this one have ended too."""
        if self._before is None or self._before.done():
            self._let_next()
        else:
            self._before.add_done_callback(self._let_next)

    def _let_next(self, before: asyncio.Future[None] | None = None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


_FREE = Turn(None, None)


class Turns:
    """Gives out turns."""

    __slots__ = ("_last", "_ordered")

    def __init__(self, *, ordered: bool) -> None:
        """Without ``ordered`` nobody waits for anybody: for a single handler, and for those that publish nothing."""
        self._ordered = ordered
        self._last: asyncio.Future[None] | None = None

    def next(self) -> Turn:
        """The turn after the one that was given out last."""
        if not self._ordered:
            return _FREE
        before, self._last = self._last, asyncio.get_running_loop().create_future()
        return Turn(before, self._last)
