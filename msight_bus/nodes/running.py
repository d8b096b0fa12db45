"""Running nodes as a program: one bus, signals, and an end in the order of the pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from msight_bus.bus import Bus, connect
from msight_bus.draining import CLOSE_WITHIN
from msight_bus.errors import BusError, ConfigError, DrainTimeoutError
from msight_bus.events import BusEvent
from msight_bus.nodes.node import Node
from msight_bus.nodes.source import SourceNode
from msight_bus.off_loop import left_running
from msight_bus.runtime import UNWIND_WITHIN, nothing_keeps_the_loop, run, running_loop
from msight_bus.settings import BusSettings
from msight_bus.signals import StopSignals, mark_logged, tell_once

logger = logging.getLogger("msight_bus.nodes")


def run_nodes(
    *nodes: Node,
    settings: BusSettings | None = None,
    end_with_sources: bool = False,
    on_event: Callable[[BusEvent], None] | None = None,
) -> None:
    """Run nodes until all have ended, or until SIGTERM or Ctrl-C; then end in order.

    One bus serves all nodes. A signal drains them within ``MSIGHT_DRAIN_TIMEOUT``: sources first, then the nodes that they
    feed. A second signal ends at once. A node that fails ends alone; the others go on, and the error is raised at the end.
    Log records go to stderr, unless the program has configured logging.

    Args:
        nodes: at least one, each once; two workers of a group are two nodes of one name.
        settings: ``BusSettings()``, read from the environment, if not given.
        end_with_sources: end in order when the last `SourceNode` among ``nodes`` has ended, as after a file was read. Where
            a log is kept, what the others have not read by then waits there for their next run.
        on_event: called with each event of the bus, see `connect`; `Node.on_event` is called with those of one node.

    As a program, its exit status is 0 if everything was handled, 1 if a node failed or something was left at the deadline, and
    128 and the signal's number at a second signal; also where a thread or process of `off_loop` is left, which the log names.

    Raises:
        ConfigError: settings are wrong, or a node is given twice or none at all.
        ConnectionLostError, AuthenticationError: there is no broker to run on.
        DrainTimeoutError: not everything was handled within the deadline.
        Exception: the first error that ended a node.
        SystemExit: a second SIGTERM or SIGINT came; its code is 128 and the signal's number.
        RuntimeError: an event loop is running in this thread; await `run_until` there.
    """
    _check(nodes)
    if running_loop() is not None:
        raise RuntimeError(
            "An event loop is running here already, as in a notebook: `async with msight_bus.connect() as bus: "
            "await msight_bus.nodes.run_until(bus, *nodes, stop=asyncio.Event())`."
        )
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if logger.parent is not None and logger.parent.level == logging.NOTSET:
            logger.parent.setLevel(logging.INFO)  # this program has said nothing about levels
    signals = StopSignals()
    try:
        run(_main(nodes, settings, end_with_sources, on_event, signals))
    except asyncio.CancelledError:
        signals.raise_second()
        raise
    except Exception as error:
        if isinstance(error, BusError):
            mark_logged(error)  # its sentence says everything
        tell_once(error)
        raise


async def _main(
    nodes: tuple[Node, ...],
    settings: BusSettings | None,
    end_with_sources: bool,
    on_event: Callable[[BusEvent], None] | None,
    signals: StopSignals,
) -> None:
    def runs_code(task: asyncio.Task[Any]) -> bool:
        return any(node._node_run is not None and task in node._node_run.tasks for node in nodes)

    async with nothing_keeps_the_loop(), connect(settings, on_event=on_event) as bus:
        with signals.handled(runs_code) as stop:
            await _run_until(bus, nodes, stop, end_with_sources, bus.core.backend.abort_at)


async def run_until(bus: Bus, *nodes: Node, stop: asyncio.Event, end_with_sources: bool = False) -> None:
    """Run ``nodes`` on ``bus`` as `run_nodes` does, inside a loop of one's own; ``stop`` is what a signal is there.

    Raises:
        ConfigError, DrainTimeoutError, Exception: as `run_nodes`.
    """
    await _run_until(bus, nodes, stop, end_with_sources, abort_at=lambda _: None)  # the bus is the caller's


async def _run_until(
    bus: Bus, nodes: tuple[Node, ...], stop: asyncio.Event, end_with_sources: bool, abort_at: Callable[[float], None]
) -> None:
    _check(nodes)
    loop = asyncio.get_running_loop()
    errors: list[BaseException] = []
    running: dict[asyncio.Task[None], Node] = {}

    def start(node: Node) -> None:
        task = asyncio.create_task(node.run(bus), name=f"msight_bus node {node.name}")
        task.add_done_callback(note_error)
        running[task] = node

    def note_error(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            errors.append(error)

    stopped = asyncio.create_task(stop.wait(), name="msight_bus stop")
    ready = asyncio.create_task(_all_ready(running.values()), name="msight_bus start")
    late: DrainTimeoutError | None = None
    try:
        # Sources begin when the others have subscribed, so that a pipeline in one process gets the first item too.
        for node in nodes:
            if not isinstance(node, SourceNode):
                start(node)
        await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
        for node in nodes:
            if isinstance(node, SourceNode) and not stop.is_set():
                start(node)
        await _wait_for_end(running, stopped, end_with_sources)
        timeout = bus.settings.limits.drain_timeout
        abort_at(loop.time() + timeout + CLOSE_WITHIN)
        late = await _drain(running, timeout)
    except asyncio.CancelledError:
        abort_at(loop.time() + CLOSE_WITHIN)
        raise
    finally:
        for task in (stopped, ready, *running):
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=UNWIND_WITHIN)
        for line in left_running():
            logger.warning("Left running: %s.", line)
    if late is not None and errors:
        logger.error("%s", late)
    if errors:
        raise errors[0]
    if late is not None:
        raise late


async def _all_ready(nodes: Iterable[Node]) -> None:
    """Wait until every node has subscribed or ended; they are started before this task runs."""
    await asyncio.sleep(0)  # now each one has begun
    for node in list(nodes):
        assert node._node_run is not None
        await node._node_run.ready.wait()


async def _wait_for_end(
    running: dict[asyncio.Task[None], Node], stopped: asyncio.Task[bool], end_with_sources: bool
) -> None:
    """Wait until all have ended, a stop is asked for, or all sources have ended where that is the end."""
    sources = {task for task, node in running.items() if isinstance(node, SourceNode)}
    while not stopped.done():
        left = {task for task in running if not task.done()}
        if not left or (end_with_sources and sources and not sources & left):
            return
        await asyncio.wait({*left, stopped}, return_when=asyncio.FIRST_COMPLETED)
    names = ", ".join(sorted(node.name for task, node in running.items() if not task.done()))
    if names:
        logger.info("Stopping %s; another signal stops at once.", names)


async def _drain(running: dict[asyncio.Task[None], Node], timeout: float) -> DrainTimeoutError | None:
    """Stop the nodes, each after those that feed it, so that what they publish last is still taken."""
    await asyncio.sleep(0)  # a node that was started just now can be stopped from here on
    left = {task: node for task, node in running.items() if not task.done()}
    try:
        async with asyncio.timeout(timeout):
            while left:
                fed = {node.config.publish_topic_name for node in left.values()} - {None}
                ending = {task for task, node in left.items() if node.config.subscribe_topic_name not in fed}
                ending = ending or set(left)  # they feed each other in a circle
                for task in ending:
                    left[task].stop()
                await asyncio.wait(ending)
                left = {task: node for task, node in left.items() if task not in ending}
    except TimeoutError:
        counts = {f"node {node.name}": node.left for task, node in left.items() if not task.done()}
        what = ", ".join(f"{count} messages at {place}" for place, count in counts.items())
        return DrainTimeoutError(f"Not drained within {timeout:g} s (MSIGHT_DRAIN_TIMEOUT); left: {what}.", left=counts)
    return None


def _check(nodes: tuple[Node, ...]) -> None:
    if not nodes:
        raise ConfigError("Give at least one node to run.")
    if len(set(map(id, nodes))) < len(nodes):
        raise ConfigError("A node is given twice; for two workers of a group make two nodes of one name.")
    for node in nodes:
        if not isinstance(node, Node):
            raise ConfigError(
                f"A node to run is an instance of a Node subclass, Mine(NodeConfig(...)), not {node!r:.100}."
            )
        if not hasattr(node, "config"):
            raise ConfigError(f"{type(node).__name__}.__init__ has to call super().__init__(config) with a NodeConfig.")
