"""One run of a node: what it counts, how it fares, and how it says so.

This is apart from the node's class, so that names in a user's subclass cannot get in its way.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from msight_bus.bus import Bus
from msight_bus.nodes.announcing import Announcer
from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.meter import Meter
from msight_bus.registry import NodeInfo, NodeStatus


class Inputs(Protocol):
    """What a node has not finished."""

    @property
    def queued(self) -> int:
        """Messages that wait."""

    @property
    def dropped(self) -> int:
        """Messages dropped since the start."""

    @property
    def unsettled(self) -> int:
        """Messages that were handled, whose outputs are on their way."""


class Life:
    """State of one run (bus.Guest).

    Attributes:
        config, bus, logger: the node's.
        meter: its counters.
        in_hand: since when the node's code has been busy, in the loop's seconds, by handler.
        tasks: those in which its code runs.
        stopping: set when the node shall end in order.
        ready: set when the first item can come, and when it has ended.
        over: set when it has ended.
        status: how it fares.
        ended: it only has to say so.
        group: the consumer group that it is in.
        inputs: what it has not finished; ``None`` before it has begun.
    """

    def __init__(self, config: NodeConfig, kind: str, bus: Bus, logger: logging.Logger) -> None:
        """``kind`` is the name of the node's class."""
        self.config = config
        self.bus = bus
        self.logger = logger
        self.meter = Meter(config.heartbeat_update_interval, asyncio.get_running_loop().time)
        self.in_hand: dict[int, float] = {}
        self.name = config.name
        self.tasks: set[asyncio.Task[Any]] = set()
        self.stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self.over = asyncio.Event()
        self.status = NodeStatus.REGISTERED
        self.ended = False
        self.group: str | None = None
        self.inputs: Inputs | None = None
        self._kind = kind
        self._instance = secrets.token_hex(8)
        self._started_at = bus.core.clock()
        self._announcer = Announcer(bus, self._describe, config.heartbeat_update_interval, logger)

    @property
    def left(self) -> int:
        """Inputs that are queued, in hand, or not acknowledged yet; of a source, its outputs."""
        waiting = self.inputs.queued + self.inputs.unsettled if self.inputs is not None else 0
        return waiting + len(self.in_hand)

    def running(self) -> None:
        """The first item can come."""
        self._fares(NodeStatus.RUNNING)
        self.logger.info("Running.")
        self.ready.set()

    @contextmanager
    def code(self, where: str) -> Iterator[None]:
        """Log an error of the node's own code with its traceback, and raise it."""
        try:
            yield
        except Exception:
            self.logger.exception("Error in %s.%s", self._kind, where)
            raise

    def code_failed(self, error: BaseException) -> None:
        """Count and log an error of the node's own code."""
        self.meter.errors += 1
        self.logger.error("Error in %s", self._kind, exc_info=error)

    @asynccontextmanager
    async def announced(self, tolerance: float) -> AsyncIterator[None]:
        """Announce the node while the context lasts, and its end.

        Args:
            tolerance: seconds that the node's code may be busy with one item; 0 or less for any time.
        """
        tasks = [asyncio.create_task(self._announcer.run(), name=f"msight_bus heartbeat {self.name}")]
        if tolerance > 0:
            tasks.append(asyncio.create_task(self._watch(tolerance), name=f"msight_bus watch {self.name}"))
        last = NodeStatus.STOPPED
        try:
            yield
        except Exception as error:
            last = NodeStatus.ERROR
            self.logger.error("Ended by %s: %s", type(error).__name__, error)  # noqa: TRY400 - its traceback is run()'s
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.status = last
            self.ended = True
            await self._announcer.farewell()
            self.logger.info("Ended with status %s.", last)

    @contextmanager
    def as_guest(self) -> Iterator[None]:
        """Be drained with the bus while the context lasts."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.bus.core.drainables.add(self)
        try:
            yield
        finally:
            self.bus.core.drainables.discard(self)
            self.ready.set()
            self.over.set()

    async def _watch(self, tolerance: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.config.heartbeat_checking_duration)
            now = loop.time()
            busy = now - min(self.in_hand.values(), default=now)
            if busy > tolerance and self.status is NodeStatus.RUNNING:
                self.logger.error("Busy with one item for %.1f s; heartbeat_tolerance is %g s.", busy, tolerance)
                self._fares(NodeStatus.ERROR)
            elif busy <= tolerance and self.status is NodeStatus.ERROR:
                self.logger.info("Going on.")
                self._fares(NodeStatus.RUNNING)

    def _fares(self, status: NodeStatus) -> None:
        self.status = status
        self._announcer.changed()

    def _describe(self) -> NodeInfo:
        queued, dropped = (0, 0) if self.inputs is None else (self.inputs.queued, self.inputs.dropped)
        return NodeInfo(
            name=self.config.name,
            instance=self._instance,
            type=_printable(self._kind),
            device=_printable(self.bus.core.name),
            status=self.status,
            started_at=self._started_at,
            heartbeat_interval=self.config.heartbeat_update_interval,
            publish_topic=self.config.publish_topic_name,
            subscribe_topic=self.config.subscribe_topic_name,
            group_id=self.group,
            last_heartbeat=self.bus.core.clock(),
            ended=self.ended,
            metrics=self.meter.snapshot(queued=queued, dropped=dropped),
        )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def cancellation_requested() -> bool:
    """Whether this task was asked to end. If it was not, a ``CancelledError`` is a mistake in the code that it calls."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
