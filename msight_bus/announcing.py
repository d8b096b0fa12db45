"""Announcements on the reserved topic: by the clock, and at once when something changes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

import msgspec

from msight_bus.core import Core
from msight_bus.errors import AuthenticationError, BusError, ClosedError
from msight_bus.queues import QueuePolicy
from msight_bus.registry import NodeInfo, NodeStatus
from msight_bus.topics import ALIVE_TOPIC, NODES_TOPIC

_FAREWELL_WITHIN = 1.0  # seconds for the last announcement: an end must not wait for a broker that is away


class Announcer:
    """Announces one run of a node. A broker that is away, or does not permit it, never harms the node.

    Attributes:
        instance: random id of this run.
        present: whether the subscription is there by which the broker can be asked for this run.
    """

    def __init__(self, core: Core, describe: Callable[[], NodeInfo], interval: float, logger: logging.Logger) -> None:
        """``describe`` gives the announcement of this moment; ``interval`` is in seconds."""
        self._core = core
        self._describe = describe
        self._interval = interval
        self._logger = logger
        self.instance = secrets.token_hex(8)
        self.present = False
        self._changed = asyncio.Event()
        self._problem: str | None = None
        self._refused = False

    async def be_present(self) -> None:
        """Subscribe to a topic of this instance, so that an observer can ask the broker whether it is there, for ever."""
        if self._core.backend.capabilities.persistence:
            return  # a log cannot be asked, and would keep the topic
        try:
            subscription = self._core.subscribe((ALIVE_TOPIC + self.instance,), queue=QueuePolicy.latest(1))
            async with subscription:
                self.present = True
                if self._describe().status is NodeStatus.RUNNING:  # else it is announced with that
                    self.changed()
                async for _ in subscription:
                    pass
        except BusError as error:
            if not isinstance(error, ClosedError):
                self._logger.info("Others cannot ask the broker for this node: %s", error)
        finally:
            self.present = False

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
            await self._core.publish(NODES_TOPIC, msgspec.json.encode(self._describe()))
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
