"""Nodes that bring data in."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import ClassVar

from msight_bus.errors import BusError, ConfigError
from msight_bus.loop_share import LoopShare
from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.metrics import BOUNDS
from msight_bus.nodes.node import Node
from msight_bus.nodes.node_run import LEFT_CANCELLED, NodeRun
from msight_bus.nodes.publishing import BUS_IS_OVER, NodePublisher, Output, Result
from msight_bus.tasks import unrequested

_A_TURN = 250
"""Items after which a source that never waits lets others run: nodes that it feeds in this process should keep up."""

_FIRST_PAUSE = 0.1  # seconds before a sensor that failed is tried again; doubled at each failure in a row
_LONGEST_PAUSE = 10.0


class SourceNode(Node):
    """Brings data in, from a sensor or a file. Define `get_data` or `stream`.

    With ``action_on_error="continue"``, after an error in it the source is asked again after a pause that grows from
    0.1 s to 10 s while it goes on failing.

    Attributes:
        sensor_name: as it is configured.
    """

    required_topics: ClassVar[tuple[str, ...]] = ("publish_topic_name",)
    unused_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name",)
    default_heartbeat_tolerance: ClassVar[float] = 60.0
    coroutines: ClassVar[tuple[str, ...]] = (*Node.coroutines, "get_data")

    def __init__(self, config: NodeConfig) -> None:
        """See `Node`."""
        super().__init__(config)
        own = type(self)
        if (own.get_data is SourceNode.get_data) == (own.stream is SourceNode.stream):
            raise ConfigError(f"{own.__name__} is a SourceNode, so it defines either get_data or stream.")
        self.sensor_name = config.sensor_name

    async def get_data(self) -> Output | Sequence[Output] | None:
        """The next item to publish, a list of items, or ``None`` if there is nothing this time.

        It is cancelled when the node is stopped. Raise ``StopAsyncIteration`` when there will be nothing more.
        """
        raise NotImplementedError

    def stream(self) -> AsyncIterator[Output | Sequence[Output] | None]:
        """The items to publish, as an async generator; the node ends with it. It is closed when the node is stopped."""
        return _Asked(self)

    async def _work(self, run: NodeRun) -> None:
        assert run.config.publish_topic_name is not None
        async with NodePublisher.open(run, run.config.publish_topic_name) as publisher:
            items = Items(run, self.stream, publisher)
            run.running(None)
            await items.run()


class _Asked:
    """`SourceNode.get_data`, asked again and again."""

    def __init__(self, node: SourceNode) -> None:
        self._node = node

    def __aiter__(self) -> _Asked:
        return self

    async def __anext__(self) -> Output | Sequence[Output] | None:
        return await self._node.get_data()


class Items:
    """One run of a source: asks the node's code for items and publishes them."""

    def __init__(self, run: NodeRun, stream: Callable[[], AsyncIterator[Result]], publisher: NodePublisher) -> None:
        """``stream`` begins the node's items anew."""
        self._run = run
        self._stream = stream
        self._publisher = publisher
        self._items: AsyncIterator[Result] | None = None
        self._task: asyncio.Task[None] | None = None
        self._asking = False
        self._interrupted = False
        self._in_hand = 0
        run.unfinished = lambda: publisher.in_flight + self._in_hand

    async def run(self) -> None:
        """Publish items until they end or the node is stopped.

        Raises:
            Exception: an error in the node's code, or of the bus.
        """
        name = self._run.config.name
        interrupter = asyncio.create_task(self._interrupt(), name=f"msight_bus intake {name}")
        self._task = task = asyncio.create_task(self._publish_all(), name=f"msight_bus source {name}")
        self._run.tasks.add(task)
        try:
            await asyncio.wait((task,))
        finally:
            interrupter.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        if task.cancelled():
            raise RuntimeError(LEFT_CANCELLED)
        task.result()

    async def _interrupt(self) -> None:
        """When the node is stopped, wait no longer for the next item."""
        await self._run.stopping.wait()
        if self._asking and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    async def _publish_all(self) -> None:
        run, config, publisher = self._run, self._run.config, self._publisher
        meter, busy_since, stopping = run.meter, run.busy_since, run.stopping
        send = publisher.send_plain if publisher.plain else None
        share = LoopShare(f"{run.name}.stream", run.logger, config.heartbeat_update_interval)
        loop_time, buckets = asyncio.get_running_loop().time, meter.buckets
        every = config.gap + 1
        number = 0
        pause = _FIRST_PAUSE
        now = loop_time()
        try:
            while not stopping.is_set():
                began = busy_since[0] = now
                if share.held_since is None:
                    share.begin(now)
                    verbose = run.logger.isEnabledFor(logging.DEBUG)
                try:
                    self._asking = True
                    if self._items is None:
                        self._items = self._stream()
                    try:
                        result = await anext(self._items)
                    except asyncio.CancelledError as error:
                        self._check_stopped(error)
                        raise unrequested(error) from error
                    finally:
                        self._asking = False
                    number += 1
                    # The first of each gap + 1 is published, so that a short stream is not an empty one.
                    if result is not None and (every == 1 or number % every == 1):
                        came = loop_time()
                        if send is not None and type(result) is bytes and not verbose:  # the usual case
                            self._in_hand = 1
                            try:
                                await send(result)
                            except BusError as error:
                                await self._publish(result, error)
                            else:
                                meter.messages_out += 1
                            self._in_hand = 0
                        else:
                            await self._publish(result)
                        now = loop_time()
                        buckets[bisect_left(BOUNDS, now - came)] += 1
                    else:
                        now = loop_time()
                except StopAsyncIteration:
                    return
                except BUS_IS_OVER:
                    raise
                except Exception as error:
                    run.code_failed(error)
                    if config.action_on_error == "stop":
                        raise
                    await self._close_items()
                    busy_since.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await stopping.wait()
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    now = loop_time()
                else:
                    pause = _FIRST_PAUSE
                    if share.held_since is not None and (now >= share.yield_at or not number % _A_TURN):
                        busy_since.clear()
                        await share.give(began, now)
                        now = loop_time()
        finally:
            busy_since.clear()
            await self._close_items()

    def _check_stopped(self, error: asyncio.CancelledError) -> None:
        """
        Raises:
            StopAsyncIteration: ``error`` is that of `_interrupt`.
        """
        if self._interrupted and self._task is not None:
            self._interrupted = False
            if self._task.uncancel() == 0:
                raise StopAsyncIteration from error

    async def _publish(self, result: Result, error: BusError | None = None) -> None:
        """Publish an item: ``error`` is what a first try to send it raised."""
        self._run.busy_since.clear()  # from here on it is the broker that takes long
        try:
            outputs = self._publisher.outputs(result)
        except BusError as unfit:
            self._unpublished(unfit)
            return
        self._in_hand = len(outputs)
        for output in outputs:
            try:
                await self._publisher.send(output, error)
            except BUS_IS_OVER:
                raise
            except BusError as refusal:
                self._unpublished(refusal)
            self._in_hand -= 1

    def _unpublished(self, error: BusError) -> None:
        """Count an output that cannot be published; the source goes on with the next where that was chosen."""
        if self._run.config.action_on_error == "stop":
            raise error  # `_publish_all` counts it
        self._run.code_failed(error)

    async def _close_items(self) -> None:
        items, self._items = self._items, None
        close = getattr(items, "aclose", None)
        if close is None:
            return
        try:
            await close()
        except Exception as error:
            self._run.code_failed(error)
            if self._run.config.action_on_error == "stop":
                raise
