"""Source nodes, which publish data from sensors or files."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, ClassVar, Generic

from msight_bus.errors import BusError, ConfigError
from msight_bus.loop_share import LoopShare
from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.metrics import BOUNDS
from msight_bus.nodes.node import Node
from msight_bus.nodes.node_publisher import A_TURN, BUS_CLOSED, NodePublisher, Out, Result
from msight_bus.nodes.node_run import LEFT_CANCELLED, NodeRun
from msight_bus.tasks import error_of_code

_FIRST_PAUSE = 0.1  # seconds before a retry after an error; doubled at each consecutive error
_LONGEST_PAUSE = 10.0


class SourceNode(Node, Generic[Out]):
    """Publishes data from a sensor or a file. Define `get_data` or `stream`. ``SourceNode[Out]`` checks that its outputs are an
    ``Out``, a type as for `Bus.publisher`.

    With ``action_on_error="continue"``, the source is called again after an error, with exponential backoff from 0.1 s to 10 s.

    Attributes:
        sensor_name: name of the sensor (`NodeConfig.sensor_name`).
    """

    required_topics: ClassVar[tuple[str, ...]] = ("publish_topic_name",)
    unused_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name",)
    type_fields: ClassVar[tuple[str, ...]] = ("publish_topic_data_type",)
    default_heartbeat_tolerance: ClassVar[float] = 60.0
    coroutines: ClassVar[tuple[str, ...]] = (*Node.coroutines, "get_data")

    def __init__(self, config: NodeConfig) -> None:
        """See `Node`.

        Raises:
            ConfigError: the class defines neither `get_data` nor `stream`, or both, or a topic is wrong.
        """
        super().__init__(config)
        own = type(self)
        if (own.get_data is SourceNode.get_data) == (own.stream is SourceNode.stream):
            raise ConfigError(f"{own.__name__} is a SourceNode: define either get_data or stream.")
        self.sensor_name = config.sensor_name

    async def get_data(self) -> Result[Out]:
        """Return the next item to publish, a list of items, or ``None`` to publish nothing this time.

        The call is cancelled when the node is stopped. Raise ``StopAsyncIteration`` to end the node.
        """
        raise NotImplementedError

    def stream(self) -> AsyncIterator[Result[Out]]:
        """Yield the items to publish. The node ends with the generator; the generator is closed when the node is stopped."""
        return _Polled(self)

    async def _work(self, run: NodeRun) -> None:
        assert run.config.publish_topic_name is not None
        async with NodePublisher.open(run, run.config.publish_topic_name) as publisher:
            items = Items(run, self.stream, publisher)
            run.running(None)
            await items.run()


class _Polled:
    """Iterates the results of `SourceNode.get_data`."""

    def __init__(self, node: SourceNode[Any]) -> None:
        self._node = node

    def __aiter__(self) -> _Polled:
        return self

    async def __anext__(self) -> Result[Any]:
        return await self._node.get_data()


class Items:
    """One run of a source: gets items from the node's code and publishes them."""

    def __init__(
        self, run: NodeRun, stream: Callable[[], AsyncIterator[Result[Any]]], publisher: NodePublisher
    ) -> None:
        """
        Args:
            run: the state of the run.
            stream: returns a new iterator of the node's items.
            publisher: publishes the items.
        """
        self._run = run
        self._stream = stream
        self._publisher = publisher
        self._items: AsyncIterator[Result[Any]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._asking = False
        self._closing = False
        self._interrupted = False
        self._in_hand = 0
        run.unfinished = lambda: publisher.in_flight + self._in_hand
        run.publishing = lambda: self._in_hand > 0
        run.where = lambda: run.hook or ("stream" if self._asking or self._closing else "")

    async def run(self) -> None:
        """Publish items until they end or the node is stopped.

        Raises:
            Exception: an error of the node's code, or of the bus.
        """
        name = self._run.config.name
        interrupter = asyncio.create_task(self._interrupt(), name=f"msight_bus interrupt {name}")
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
        """When the node is stopped, cancel the wait for the next item."""
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
                        raise error_of_code(error) from error
                    except Exception:
                        raise
                    except BaseException as error:
                        raise error_of_code(error) from error
                    finally:
                        self._asking = False
                    number += 1
                    # Of each gap + 1 items, the first is published, so that a short stream publishes at least one item.
                    if result is not None and (every == 1 or number % every == 1):
                        came = loop_time()
                        if send is not None and type(result) is bytes and not verbose:  # the common case
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
                except BUS_CLOSED:
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
                    if share.held_since is not None and (now >= share.yield_at or not number % A_TURN):
                        busy_since.clear()
                        await share.yield_to_loop(began, now)
                        now = loop_time()
        finally:
            busy_since.clear()
            await self._close_items()

    def _check_stopped(self, error: asyncio.CancelledError) -> None:
        """Undo a cancellation by `_interrupt`.

        Raises:
            StopAsyncIteration: ``error`` is the cancellation by `_interrupt`.
        """
        if self._interrupted and self._task is not None:
            self._interrupted = False
            if self._task.uncancel() == 0:
                raise StopAsyncIteration from error

    async def _publish(self, result: Result[Any], error: BusError | None = None) -> None:
        """Publish an item; ``error`` is the error of a first attempt to send it, if there was one."""
        try:
            outputs = self._publisher.outputs(result)
        except BusError as unfit:
            self._unpublished(unfit)
            return
        self._in_hand = len(outputs)
        for number, output in enumerate(outputs, 1):
            try:
                await self._publisher.send(output, error)
            except BUS_CLOSED:
                raise
            except BusError as refusal:
                self._in_hand -= 1
                self._unpublished(refusal)
            else:
                self._in_hand -= 1
            if not number % A_TURN:
                await asyncio.sleep(0)

    def _unpublished(self, error: BusError) -> None:
        """Count an output that cannot be published; with ``action_on_error="stop"``, raise the error."""
        if self._run.config.action_on_error == "stop":
            raise error  # `_publish_all` counts it
        self._run.code_failed(error)

    async def _close_items(self) -> None:
        items, self._items = self._items, None
        close = getattr(items, "aclose", None)
        if close is None:
            return
        self._closing = True
        try:
            await close()
        except BaseException as raised:
            error = error_of_code(raised)
            self._run.code_failed(error)
            if self._run.config.action_on_error == "stop":
                raise error  # noqa: B904 - error_of_code has set the cause
        finally:
            self._closing = False
