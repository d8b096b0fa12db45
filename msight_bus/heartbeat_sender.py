"""Heartbeats of a node on the reserved topic: at each interval, and at each change of status."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

import msgspec

from msight_bus.announcements import NodeInfo, NodeStatus
from msight_bus.core import Core
from msight_bus.errors import AuthenticationError, BusError, ClosedError
from msight_bus.queue_policy import QueuePolicy
from msight_bus.topics import ALIVE_TOPIC, NODES_TOPIC

_END_WITHIN = 1.0  # deadline of the last announcement, in seconds, so that a node can end while the broker is down


async def hold_liveness_subscription(core: Core, instance: str, on_confirmed: Callable[[], None]) -> None:
    """Subscribe to the liveness topic of ``instance`` until the subscription ends.

    Raises:
        BusError: the broker refused the subscription, or did not confirm it.
    """
    topics, queue = (ALIVE_TOPIC + instance,), QueuePolicy.latest(1)
    # A gap on this topic is not an event of the program.
    async with core.subscribe(topics, queue=queue, report=lambda _: None) as subscription:
        on_confirmed()
        async for _ in subscription:
            pass


def printable(text: str) -> str:
    """Return text for an announcement: shortened, with ``?`` for characters that a terminal does not print."""
    text = text[:200]
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


class Announcer:
    """The announcements of one run of a node. Failures to announce are logged and never raised.

    Attributes:
        instance: random id of this run.
        present: whether this run holds its liveness subscription.
    """

    def __init__(self, core: Core, describe: Callable[[], NodeInfo], interval: float, logger: logging.Logger) -> None:
        """
        Args:
            core: the bus to publish on.
            describe: returns the current announcement.
            interval: seconds between two announcements.
            logger: the node's logger.
        """
        self._core = core
        self._describe = describe
        self._interval = interval
        self._logger = logger
        self.instance = secrets.token_hex(8)
        self.present = False
        self._changed = asyncio.Event()
        self._problem: str | None = None
        self._refused = False

    async def hold_liveness_subscription(self) -> None:
        """Subscribe to this run's liveness topic until cancelled: observers ask the broker for its subscribers."""
        if self._core.backend.capabilities.persistence:
            return  # Kafka cannot report subscribers and would keep the topic
        try:
            await hold_liveness_subscription(self._core, self.instance, self._is_present)
        except BusError as error:
            if not isinstance(error, ClosedError):
                self._logger.info(
                    "No liveness subscription; observers detect a loss of this node by missed heartbeats only: %s",
                    error,
                )
        finally:
            self.present = False

    def _is_present(self) -> None:
        self.present = True
        if self._describe().status is NodeStatus.RUNNING:  # else the change to RUNNING announces it
            self.changed()

    def changed(self) -> None:
        """Announce at once, before the interval ends."""
        self._changed.set()

    async def run(self) -> None:
        """Announce at once, at each interval and at each call of `changed`, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval
        while True:
            self._changed.clear()
            await self._announce()
            try:
                async with asyncio.timeout_at(due):
                    await self._changed.wait()
            except TimeoutError:
                # Do not compare with the current time: uvloop's timers fire up to a millisecond early.
                due += self._interval
                if due < loop.time():
                    due = loop.time() + self._interval  # missed announcements are skipped

    async def announce_end(self) -> None:
        """Publish the last announcement, within 1 s."""
        try:
            async with asyncio.timeout(_END_WITHIN):
                await self._announce()
        except TimeoutError:
            self._logger.warning(
                "Last announcement not published: the broker did not accept the announcement within %g s.", _END_WITHIN
            )

    async def _announce(self) -> None:
        if self._refused:
            return
        try:
            await self._core.publish(NODES_TOPIC, msgspec.json.encode(self._describe()))
        except AuthenticationError as error:
            self._refused = True
            self._logger.warning(
                "Not permitted to publish on %s; this node is missing from registries: %s", NODES_TOPIC, error
            )
        except BusError as error:
            if self._problem is None:
                self._logger.warning("Heartbeats are not published: %s", error)
            self._problem = str(error)
        else:
            if self._problem is not None:
                self._logger.info("Heartbeats are published again.")
            self._problem = None
