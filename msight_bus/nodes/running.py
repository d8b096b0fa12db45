"""Runs nodes as a program: one bus, signals, and a drain in the order of the pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

from msight_bus.bus import Bus, connect
from msight_bus.draining import CLOSE_WITHIN
from msight_bus.errors import BusError, ConfigError, DrainTimeoutError, counted
from msight_bus.events import BusEvent
from msight_bus.executors import left_running
from msight_bus.nodes.node import Node
from msight_bus.nodes.source import SourceNode
from msight_bus.runtime import UNWIND_WITHIN, bounded_shutdown, run, running_loop
from msight_bus.settings import BusSettings
from msight_bus.signals import StopSignals, mark_logged, print_logged_briefly

logger = logging.getLogger("msight_bus.nodes")


def run_nodes(
    *nodes: Node,
    settings: BusSettings | None = None,
    end_with_sources: bool = False,
    on_event: Callable[[BusEvent], None] | None = None,
) -> None:
    """Run nodes until all have ended, or until SIGTERM or SIGINT (Ctrl-C); then drain them.

    All nodes use one bus. The first signal drains the nodes within ``MSIGHT_DRAIN_TIMEOUT``: sources first, then the nodes that
    they feed. A second signal stops at once; signals within 0.2 s count as one. A signal while the bus connects ends the program.
    A failed node does not stop the others; its error is raised at the end.
    Log records are written to stderr, unless the program has configured logging.

    The program's exit status is 0 if all messages were handled, 1 if a node failed or messages were left at the deadline, and 128
    plus the signal's number after a second signal. Threads and processes of `off_loop` do not delay the exit; the log names those
    that are still running.

    Args:
        nodes: one or more different nodes; for two workers of a group, two nodes of one name.
        settings: settings of the bus; default: ``BusSettings()``, from the environment.
        end_with_sources: whether to drain when the last `SourceNode` among ``nodes`` has ended, for example at the end of a file.
            On Kafka, messages that the other nodes have not read remain in the log for the next run.
        on_event: called with each event of the bus, see `connect`; `Node.on_event` is called with the events of one node.

    Raises:
        ConfigError: settings are wrong, no node is given, or a node is given twice.
        ConnectionLostError, AuthenticationError: the broker cannot be reached, or refused.
        DrainTimeoutError: messages were left at the deadline.
        Exception: the first error that ended a node.
        SystemExit: a second SIGTERM or SIGINT was received; the code is 128 plus the signal's number.
        RuntimeError: an event loop is running in this thread; await `run_until` instead.
    """
    _check(nodes)
    if running_loop() is not None:
        raise RuntimeError(
            "An event loop is already running in this thread, as in a notebook. Use `async with msight_bus.connect() as bus: "
            "await msight_bus.nodes.run_until(bus, *nodes, stop=asyncio.Event())`."
        )
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if logger.parent is not None and logger.parent.level == logging.NOTSET:
            logger.parent.setLevel(logging.INFO)  # the program has set no level
    signals = StopSignals()
    try:
        run(_main(nodes, settings, end_with_sources, on_event, signals))
    except asyncio.CancelledError:
        signals.raise_second()
        raise
    except Exception as error:
        if isinstance(error, BusError):
            mark_logged(error)  # its message is enough, without a traceback
        print_logged_briefly(error)
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

    async with bounded_shutdown(), AsyncExitStack() as stack:
        stop = stack.enter_context(signals.handled(runs_code))
        entering = stack.enter_async_context(connect(settings, on_event=on_event))
        connecting = asyncio.create_task(entering, name="msight_bus connect")
        stopped = asyncio.create_task(stop.wait(), name="msight_bus stop")
        await asyncio.wait((connecting, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not connecting.done():
            logger.info("Stopped before the bus was connected.")
            connecting.cancel()
            await asyncio.wait((connecting,))
            return
        bus = connecting.result()
        await _run_until(bus, nodes, stop, end_with_sources, bus.core.backend.abort_at)


async def run_until(bus: Bus, *nodes: Node, stop: asyncio.Event, end_with_sources: bool = False) -> None:
    """Run ``nodes`` as `run_nodes` does, inside a running event loop.

    Args:
        bus: the bus to run on.
        nodes: see `run_nodes`.
        stop: set it to drain the nodes, as the first signal does.
        end_with_sources: see `run_nodes`.

    Raises:
        ConfigError, DrainTimeoutError, Exception: as `run_nodes`.
    """
    await _run_until(bus, nodes, stop, end_with_sources, abort_at=lambda _: None)  # the caller closes the bus


async def _run_until(
    bus: Bus, nodes: tuple[Node, ...], stop: asyncio.Event, end_with_sources: bool, abort_at: Callable[[float], None]
) -> None:
    _check(nodes)
    for node in nodes:
        node.config.check_for(bus)
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
        # Sources start when the other nodes have subscribed, so that these receive the first item.
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
        late = await _drain(running, timeout, bus.settings.dead_letter_suffix)
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
    """Wait until every node has subscribed or ended. The tasks of the nodes were created before this task."""
    await asyncio.sleep(0)  # now each node has begun to run
    for node in list(nodes):
        assert node._node_run is not None
        await node._node_run.ready.wait()


async def _wait_for_end(
    running: dict[asyncio.Task[None], Node], stopped: asyncio.Task[bool], end_with_sources: bool
) -> None:
    """Wait until all nodes have ended, a stop is requested or, with ``end_with_sources``, all sources have ended."""
    sources = {task for task, node in running.items() if isinstance(node, SourceNode)}
    while not stopped.done():
        left = {task for task in running if not task.done()}
        if not left or (end_with_sources and sources and not sources & left):
            return
        await asyncio.wait({*left, stopped}, return_when=asyncio.FIRST_COMPLETED)
    names = ", ".join(sorted(node.name for task, node in running.items() if not task.done()))
    if names:
        logger.info("Draining %s.", names)


async def _drain(
    running: dict[asyncio.Task[None], Node], timeout: float, dead_letter_suffix: str
) -> DrainTimeoutError | None:
    """Stop the nodes, each after those that feed it, so that their last outputs are still handled.

    Returns:
        The error, if messages are left after ``timeout`` seconds.
    """
    await asyncio.sleep(0)  # a node whose task was just created can be stopped from now on
    left = {task: node for task, node in running.items() if not task.done()}
    try:
        async with asyncio.timeout(timeout):
            while left:
                outputs = {node.config.publish_topic_name for node in left.values()}
                ending = {
                    task
                    for task, node in left.items()
                    if not any(node.config.receives(topic, dead_letter_suffix) for topic in outputs)
                }
                ending = ending or set(left)  # a cycle of nodes
                for task in ending:
                    left[task].stop()
                await asyncio.wait(ending)
                left = {task: node for task, node in left.items() if task not in ending}
    except TimeoutError:
        late = [node for task, node in left.items() if not task.done()]
        counts = {f"node {node.name}": node.left for node in late if node.left}
        hooks = {
            f"node {node.name}": f" (in {where})" for node in late if (run := node._node_run) and (where := run.where())
        }
        parts = [
            (f"{counted(counts[place], 'message')} at " if place in counts else "") + place + hooks.get(place, "")
            for place in {**counts, **hooks}
        ]
        what = ", ".join(parts) or "no message, but the broker did not confirm"
        return DrainTimeoutError(f"Not drained within {timeout:g} s (MSIGHT_DRAIN_TIMEOUT); left: {what}.", left=counts)
    return None


def _check(nodes: tuple[Node, ...]) -> None:
    if not nodes:
        raise ConfigError("run_nodes() needs at least one node.")
    for number, node in enumerate(nodes):
        if not isinstance(node, Node):
            raise ConfigError(
                f"A node must be an instance of a Node subclass, such as Mine(NodeConfig(...)), not {node!r:.100}."
            )
        if not hasattr(node, "config"):
            raise ConfigError(f"{type(node).__name__}.__init__ must call super().__init__(config) with a NodeConfig.")
        if any(node is earlier for earlier in nodes[:number]):
            raise ConfigError(
                f"The node {node.name!r} is given twice; for two workers of a group, create two nodes of one name."
            )
