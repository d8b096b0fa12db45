"""The state of one run of a node: status, metrics, log lines, heartbeats and events.

Separate from the node's class, so that attributes of a user's subclass cannot collide with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from msight_bus.announcements import NodeInfo, NodeMetrics, NodeStatus, announced_topics
from msight_bus.bus import Bus
from msight_bus.errors import counted, described
from msight_bus.events import BusEvent, Disconnected, Gap, Reconnected, Refused
from msight_bus.heartbeat_sender import Announcer, printable
from msight_bus.message import Message
from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.metrics import Meter
from msight_bus.patterns import named
from msight_bus.reporting import Reporter
from msight_bus.signals import mark_logged
from msight_bus.subscription import Subscription
from msight_bus.tally import Tally
from msight_bus.tasks import error_of_code

LEFT_CANCELLED = "The node's code cancelled the task in which it runs, without a matching uncancel()."


class NodeRun:
    """State of one run (draining.Drainable).

    Attributes:
        config, bus, logger, name: configuration, bus, logger and name of the node.
        kind: name of the node's class.
        meter: counters of this run.
        busy_since: start of the item that each handler is processing, by handler, in seconds of the loop's clock.
        tasks: the tasks in which the node's code runs.
        stopping: set to drain and end the node.
        ready: set when the node has subscribed, and when it has ended.
        over: set when the node has ended.
        status: see `NodeStatus`.
        ended: whether only the last announcement is left.
        is_disconnected: whether the bus is disconnected.
        on_disconnected: called when the bus disconnects.
        unfinished: returns the number of items that were taken and are not finished.
        hook: the hook that runs now, ``on_start`` or ``on_stop``; empty if none does.
        where: returns the code of the node that runs now, for the error of a drain; empty if none is to be named.
        publishing: returns whether the node waits for the broker, which does not count against ``heartbeat_tolerance``.
        abandoned: number of inputs that were queued or being handled when the node ended.
        subscription: the node's input; ``None`` for a source.
    """

    def __init__(
        self,
        config: NodeConfig,
        kind: str,
        bus: Bus,
        logger: logging.Logger,
        on_event: Callable[[BusEvent], None] | None,
    ) -> None:
        """
        Args:
            config: configuration of the node.
            kind: name of the node's class.
            bus: the bus to run on.
            logger: the node's logger.
            on_event: called with each event of the node.

        Raises:
            TypeError: ``on_event`` is a coroutine function.
        """
        interval = config.heartbeat_update_interval
        self.config = config
        self.bus = bus
        self.logger = logger
        self.meter = Meter(interval, asyncio.get_running_loop().time)
        self.busy_since: dict[int, float] = {}
        self.name = config.name
        self.tasks: set[asyncio.Task[Any]] = set()
        self.stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self.over = asyncio.Event()
        self.status = NodeStatus.REGISTERED
        self.ended = False
        self.is_disconnected = False
        self.on_disconnected: Callable[[], None] | None = None
        self.unfinished: Callable[[], int] = lambda: 0
        self.publishing: Callable[[], bool] = lambda: False
        self.abandoned = 0
        self.hook = ""
        self.where: Callable[[], str] = lambda: self.hook
        self.subscription: Subscription[Any] | None = None
        self.kind = kind
        self.gap_lines = Tally("Messages missing", logger, interval)
        self.drop_lines = Tally("Inputs dropped, slower than the stream", logger, interval)
        self.unsent_lines = Tally("Outputs dropped", logger, interval)
        self.undecodable_lines = Tally("Inputs that cannot be decoded", logger, interval)
        self.error_lines = Tally(f"Errors in {kind}", logger, interval, logging.ERROR)
        self._reporter = Reporter(on_event)
        self._group: str | None = None
        self._started_at = bus.core.clock()
        self._announcer = Announcer(bus.core, self._describe, interval, logger)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    @property
    def left(self) -> int:
        """Number of inputs that are queued, being handled, or not yet acknowledged; of a source, outputs not yet acknowledged."""
        return self.meter.queued() + self.unfinished() + self.abandoned

    def stop(self) -> None:
        """Set `stopping`, from any thread or from a signal handler."""
        if threading.get_ident() == self._thread:
            self.stopping.set()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.stopping.set)  # wakes the loop in any case

    def running(self, group: str | None) -> None:
        """Set the status to RUNNING and log the topics; ``group`` is the consumer group, if there is one."""
        self._group = group
        inputs, output = named(self.config.inputs), self.config.publish_topic_name
        topics = f"{inputs} -> {output}" if inputs and output else f"input {inputs}" if inputs else f"output {output}"
        self.logger.info("Running on %s: %s%s", self.bus.settings.address, topics, f", group {group}" if group else "")
        self._set_status(NodeStatus.RUNNING)
        self.ready.set()

    # -- errors of the node's code

    @contextmanager
    def code(self, where: str) -> Iterator[None]:
        """Count and log an error of the node's code in ``where``, and raise it."""
        self.hook = where
        try:
            yield
        except BaseException as raised:
            error = error_of_code(raised)
            self.code_failed(error, f"in {where}")
            raise error  # noqa: B904 - error_of_code has set the cause
        finally:
            self.hook = ""

    def code_failed(self, error: BaseException, where: str = "", count: int = 1) -> None:
        """Count errors of the node's code; log the first with its traceback, then at most one each heartbeat interval."""
        self.meter.errors += count
        detail = f"{where} {described(error)}".strip()
        self.error_lines.add(None, count, detail, error)
        mark_logged(error)

    # -- events of the input and the output

    def report(self, event: BusEvent) -> None:
        """Count, log and report an event of the node's subscription."""
        if isinstance(event, Gap):
            self.gap_lines.add(event.topic, event.missing, event.cause)
        self.bus.core.reporter.report(event)
        self._reporter.report(event)

    def dropped(self, messages: Sequence[Message], cause: str) -> None:
        """Count and log messages that the queue dropped."""
        if cause == "revoked":  # delivered to another member
            return
        for message in messages:
            self.logger.debug("Dropped %r of session %s: %s.", message, message.session, cause)
            if cause == "closed":  # queued when the node ended: not dropped for being slow
                self.abandoned += 1
            else:
                self.meter.dropped += 1
                self.drop_lines.add(message.topic, 1, cause)

    def unsent(self, topic: str, count: int, why: str) -> None:
        """Count and log dropped outputs."""
        self.meter.unsent += count
        self.unsent_lines.add(topic, count, why)

    def _bus_event(self, event: BusEvent) -> None:
        """Report an event of the bus; log one line for a disconnect and one for the reconnect."""
        if isinstance(event, Disconnected) and not self.is_disconnected:
            self.is_disconnected = True
            self.logger.warning("Disconnected; %s: %s", self._meanwhile(), event.reason)
            if self.on_disconnected is not None:
                self.on_disconnected()
        elif isinstance(event, Reconnected):
            self.is_disconnected = False
            self.logger.warning("Reconnected after %s.", counted(event.attempts, "attempt"))
        elif not isinstance(event, Refused) or event.topic != self.config.publish_topic_name:
            return  # `report` takes the events of the node's own subscription
        self._reporter.report(event)

    def _meanwhile(self) -> str:
        if self.config.subscribe_topic_name is not None:
            return "no input until reconnected"
        does = "outputs are dropped and counted" if self.config.while_disconnected == "drop" else "the source waits"
        return f"{does} until reconnected (while_disconnected={self.config.while_disconnected!r})"

    # -- heartbeats, end and summary

    @asynccontextmanager
    async def announced(self, tolerance: float) -> AsyncIterator[None]:
        """Announce the node while the context lasts; at its end, announce the end and log a summary.

        Args:
            tolerance: seconds for which the node's code may handle one item; 0 or less: no limit.
        """
        began = asyncio.get_running_loop().time()
        listeners = self.bus.core.reporter.listeners
        listeners.append(self._bus_event)
        tasks = [
            asyncio.create_task(self._announcer.run(), name=f"msight_bus heartbeat {self.name}"),
            asyncio.create_task(self._announcer.hold_liveness_subscription(), name=f"msight_bus presence {self.name}"),
        ]
        if tolerance > 0:
            tasks.append(asyncio.create_task(self._watch(tolerance), name=f"msight_bus watch {self.name}"))
        last, why = NodeStatus.STOPPED, ""
        try:
            yield
        except Exception as error:
            last, why = NodeStatus.ERROR, f" by {described(error)}".rstrip(".")
            mark_logged(error)
            raise
        finally:
            listeners.remove(self._bus_event)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.status = last
            self.ended = True
            await self._announcer.announce_end()
            self._summarize(last, why, asyncio.get_running_loop().time() - began)

    def _summarize(self, last: NodeStatus, why: str, seconds: float) -> None:
        for lines in (self.gap_lines, self.drop_lines, self.unsent_lines, self.undecodable_lines, self.error_lines):
            lines.close()
        self._reporter.flush()
        m = self.metrics()
        counts = {"In": m.messages_in, "out": m.messages_out, "dropped": m.dropped, "missing": m.missing}
        counts |= {"undecodable": m.undecodable, "errors": m.errors, "left": self.left}
        figures = ", ".join(f"{name}: {'?' if count is None else f'{count:,}'}" for name, count in counts.items())
        level = logging.ERROR if why else logging.INFO
        self.logger.log(level, "Ended with status %s%s. %s, seconds: %.1f.", last, why, figures, seconds)

    @contextmanager
    def drainable(self) -> Iterator[None]:
        """Register the node for draining with the bus while the context lasts."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        others = (other for other in self.bus.core.drainables if isinstance(other, NodeRun) and other.name == self.name)
        inputs = self.config.inputs
        if any(not inputs or other.config.inputs != inputs for other in others):
            self.logger.warning(
                "Two nodes of this process are named %s and do not share an input topic, as workers of a group do: their log "
                "lines and heartbeats cannot be distinguished. Rename one of them.",
                self.name,
            )
        core = self.bus.core
        core.drainables.add(self)
        outputs = filter(None, (self.config.publish_topic_name, self.config.dead_letter_topic_name))
        core.node_topics.update(core.settings.topic_map.on_broker(topic) for topic in outputs)
        try:
            yield
        finally:
            self.bus.core.drainables.discard(self)
            self.ready.set()
            self.over.set()

    async def _watch(self, tolerance: float) -> None:
        loop = asyncio.get_running_loop()
        out, since, told = 0, loop.time(), self.config.subscribe_topic_name is not None
        while True:
            await asyncio.sleep(self.config.heartbeat_checking_duration)
            now = loop.time()
            if self.meter.messages_out != out or self.is_disconnected:
                out, since = self.meter.messages_out, now
            elif now - since > tolerance and not told:
                told = True
                self.logger.warning("No output for %.0f s: get_data or stream has returned nothing.", now - since)
            busy = 0.0 if self.publishing() else now - min(self.busy_since.values(), default=now)
            if busy > tolerance and self.status is NodeStatus.RUNNING:
                self.logger.error("Busy with one item for %.1f s; heartbeat_tolerance is %g s.", busy, tolerance)
                self._set_status(NodeStatus.ERROR)
            elif busy <= tolerance and self.status is NodeStatus.ERROR:
                self.logger.info("Recovered: the handler is responsive again.")
                self._set_status(NodeStatus.RUNNING)

    def _set_status(self, status: NodeStatus) -> None:
        self.status = status
        self._announcer.changed()

    def metrics(self) -> NodeMetrics:
        """Return the current metrics."""
        if self.subscription is not None:
            stats = self.subscription.stats
            self.meter.gaps, self.meter.missing = stats.gaps, stats.missing
        return self.meter.snapshot()

    def _describe(self) -> NodeInfo:
        output = self.config.publish_topic_name

        def on_broker(entry: str) -> str:
            return printable(self.bus.core.on_broker(entry))

        return NodeInfo(
            name=self.name,
            instance=self._announcer.instance,
            instance_id=self.config.instance_id,
            type=printable(self.kind),
            device=printable(self.bus.core.name),
            host=printable(socket.gethostname()),
            present=self._announcer.present,
            status=self.status,
            started_at=self._started_at,
            heartbeat_interval=self.config.heartbeat_update_interval,
            **announced_topics(output and on_broker(output), [on_broker(entry) for entry in self.config.inputs]),
            group_id=self._group,
            last_heartbeat=self.bus.core.clock(),
            ended=self.ended,
            metrics=self.metrics(),
        )
