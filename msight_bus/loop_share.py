"""Divide the event loop between a node's code and the other tasks: a node yields after 2 ms, and longer after a long item."""

from __future__ import annotations

import asyncio
import logging

_SHORT = 0.002
"""Seconds after which a node that never waits yields to the event loop."""

_WARN_AFTER = 1.0
"""Seconds of one item after which a WARNING names the node's code."""

LONG_TURN = 0.1
"""Seconds of one item after which the node waits until the other tasks (heartbeats, commits, received data) are idle."""

_MOST = 1.0
"""Maximum seconds of that wait."""


class LoopShare:
    """The event loop time of one node.

    Attributes:
        held_since: start of the node's code in this event loop iteration, by the loop's clock; ``None`` before that code has run.
        yield_at: time at which the node should yield, by the loop's clock.
    """

    __slots__ = ("_code", "_interval", "_logger", "_loop", "_tell_at", "held_since", "yield_at")

    def __init__(self, code: str, logger: logging.Logger, interval: float) -> None:
        """
        Args:
            code: name of the node's code, for the log.
            logger: the node's logger.
            interval: minimum seconds between two WARNINGs.
        """
        self._loop = asyncio.get_running_loop()
        self._code = code
        self._logger = logger
        self._interval = interval
        self._tell_at = 0.0
        self.held_since: float | None = None
        self.yield_at = 0.0

    def begin(self, now: float) -> None:
        """Note the start of the first item in this event loop iteration; call while ``held_since`` is ``None``."""
        self.held_since = now
        self.yield_at = now + _SHORT
        self._loop.call_soon(self._turned)

    def _turned(self) -> None:
        self.held_since = None

    async def yield_to_loop(self, began: float, now: float) -> None:
        """Yield to the event loop; after a long item, until the other tasks are idle.

        Args:
            began: start of the last item, in seconds of the loop's clock.
            now: end of the last item, by the same clock.
        """
        if now - began < LONG_TURN:
            await asyncio.sleep(0)
            return
        if self.held_since is not None and now - began >= _WARN_AFTER and now >= self._tell_at:
            self._tell_at = now + self._interval
            self._logger.warning(
                "%s blocked the event loop for %.1f s; no other task of this process ran in that time. Run the computation with "
                "`await off_loop(function, ...)`.",
                self._code,
                now - began,
            )
        await run_until_idle(now - began)


async def run_until_idle(held: float) -> None:
    """Wait until the event loop is idle for a hundredth of ``held`` seconds, at most 1 s.

    A hundredth suffices for the responses to requests that other tasks send in this time.

    Args:
        held: seconds for which the event loop was blocked.
    """
    loop = asyncio.get_running_loop()
    moment = min(0.05, max(0.001, held / 100))
    give_up_at = loop.time() + _MOST
    while loop.time() < give_up_at:
        due = loop.time() + moment
        await asyncio.sleep(moment)
        if loop.time() - due < moment:
            return
