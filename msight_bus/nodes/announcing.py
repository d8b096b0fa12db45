"""A node's announcements on the reserved topic: by the clock, and at once when its status changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from msight_bus.errors import AuthenticationError, BusError
from msight_bus.registry import NodeInfo
from msight_bus.topics import NODES_TOPIC

if TYPE_CHECKING:
    from msight_bus.bus import Bus

_FAREWELL_WITHIN = 1.0  # seconds for the last announcement: an end must not wait for a broker that is away


class Announcer:
    """Announces one run of a node. A broker that is away, or does not permit it, never harms the node."""

    def __init__(self, bus: Bus, describe: Callable[[], NodeInfo], interval: float, logger: logging.Logger) -> None:
        """``describe`` gives the announcement of this moment; ``interval`` is in seconds."""
        self._bus = bus
        self._describe = describe
        self._interval = interval
        self._logger = logger
        self._changed = asyncio.Event()
        self._problem: str | None = None
        self._refused = False

    def changed(self) -> None:
        """Announce now, and not only when the interval is over."""
        self._changed.set()

    async def run(self) -> None:
        """Announce at once, at each interval by the clock and at each change, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval
        while True:
            self._changed.clear()
            await self._announce()
            try:
                async with asyncio.timeout_at(due):
                    await self._changed.wait()
            except TimeoutError:
                # Not by comparing with the time now: uvloop's timers fire up to a millisecond early.
                due += self._interval
                if due < loop.time():
                    due = loop.time() + self._interval  # what was missed is not made up for

    async def farewell(self) -> None:
        """The last announcement, within a second."""
        try:
            async with asyncio.timeout(_FAREWELL_WITHIN):
                await self._announce()
        except TimeoutError:
            self._logger.warning("The end could not be announced: the broker did not take it in time.")

    async def _announce(self) -> None:
        if self._refused:
            return
        try:
            await self._bus.core.publish(NODES_TOPIC, msgspec.json.encode(self._describe()))
        except AuthenticationError as error:
            self._refused = True
            self._logger.warning("Not permitted to publish on %s, so nobody sees this node: %s", NODES_TOPIC, error)
        except BusError as error:
            if self._problem is None:
                self._logger.warning("Heartbeats are not published: %s", error)
            self._problem = str(error)
        else:
            if self._problem is not None:
                self._logger.info("Heartbeats are published again.")
            self._problem = None
