"""How a node's code shares the event loop: it keeps the loop while that is short; after a long turn the others go first."""

from __future__ import annotations

import asyncio
import logging

_SHORT = 0.002
"""Seconds for which code that never waits may keep the loop."""

_TOLD = 1.0
"""Seconds after which the log names the code."""

LONG_TURN = 0.1
"""Seconds after which the rest of the process has waited for long: heartbeats, commits, answers that are in the sockets."""

_MOST = 1.0
"""Seconds at most that the rest of the process gets, however busy it is."""


class LoopShare:
    """One node's part of the event loop.

    Attributes:
        held_since: since when the loop has not turned, ``None`` if the node's code has not begun since.
        yield_at: when the code has kept the loop for long enough.
    """

    __slots__ = ("_code", "_interval", "_logger", "_loop", "_tell_at", "held_since", "yield_at")

    def __init__(self, code: str, logger: logging.Logger, interval: float) -> None:
        """
        Args:
            code: the node's code, as a person calls it.
            logger: of the node.
            interval: seconds between two warnings.
        """
        self._loop = asyncio.get_running_loop()
        self._code = code
        self._logger = logger
        self._interval = interval
        self._tell_at = 0.0
        self.held_since: float | None = None
        self.yield_at = 0.0

    def begin(self, now: float) -> None:
        """The node's code begins with its first item since the loop turned (``held_since`` is ``None``)."""
        self.held_since = now
        self.yield_at = now + _SHORT
        self._loop.call_soon(self._turned)

    def _turned(self) -> None:
        self.held_since = None

    async def give(self, began: float, now: float) -> None:
        """Let others run: the item that ended ``now`` and began at ``began`` was long, or several have been (`yield_at`)."""
        if now - began < LONG_TURN:
            await asyncio.sleep(0)
            return
        if self.held_since is not None and now - began >= _TOLD and now >= self._tell_at:
            self._tell_at = now + self._interval
            self._logger.warning(
                "%s held the event loop for %.1f s; nothing else of this process ran meanwhile. Move what computes off the "
                "loop: await off_loop(function, ...).",
                self._code,
                now - began,
            )
        await run_until_idle(now - began)


async def run_until_idle(held: float) -> None:
    """Let others run until the loop has had nothing to do for a moment, after it was held for ``held`` seconds.

    The moment is a hundredth of that, so that an answer to what others send now can come.
    """
    loop = asyncio.get_running_loop()
    moment = min(0.05, max(0.001, held / 100))
    give_up_at = loop.time() + _MOST
    while loop.time() < give_up_at:
        due = loop.time() + moment
        await asyncio.sleep(moment)
        if loop.time() - due < moment:
            return
