"""How a node's code shares the event loop: after a turn that was short the next item follows soon, after a long one the rest
of the process goes first."""

from __future__ import annotations

import asyncio
import logging

from msight_bus.tasks import LONG_TURN, run_until_idle

_SHORT = 0.005
"""Seconds for which code that never waits may keep the loop to itself."""

_TOLD = 1.0
"""Seconds after which the log names the code."""


class LoopShare:
    """One node's part of the loop."""

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
        self._held_since: float | None = None
        self._yield_at = 0.0
        self._tell_at = 0.0

    def begins(self) -> float:
        """The node's code begins with an item; returns the time."""
        now = self._loop.time()
        if self._held_since is None:  # else the loop has not turned since an item before
            self._held_since = now
            self._loop.call_soon(self._turned)
        return now

    def _turned(self) -> None:
        self._held_since = None

    @property
    def was_held(self) -> bool:
        """Whether the loop has not turned since the code began: it did not wait for anything."""
        return self._held_since is not None

    async def ended(self, began: float) -> None:
        """The node's code has ended with the item that it began with at ``began``: let others run, if they have waited."""
        now = self._loop.time()
        if now - began < LONG_TURN:
            if now >= self._yield_at:
                await asyncio.sleep(0)
                self._yield_at = self._loop.time() + _SHORT
            return
        if self.was_held and now - began >= _TOLD and now >= self._tell_at:
            self._tell_at = now + self._interval
            self._logger.warning(
                "%s held the event loop for %.1f s; nothing else of this process ran meanwhile. Move what computes off the "
                "loop: await off_loop(function, ...).",
                self._code,
                now - began,
            )
        await run_until_idle(now - began)
        self._yield_at = self._loop.time() + _SHORT
