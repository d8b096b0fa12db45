"""The window of inputs between a node's subscription and its publisher: order of the outputs, acknowledgement, errors."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msight_bus.data import looks_like_data
from msight_bus.errors import BusError, ClosedError, ConnectionLostError, DecodeError
from msight_bus.loop_share import LoopShare
from msight_bus.message import Message
from msight_bus.nodes.metrics import BOUNDS
from msight_bus.nodes.node_publisher import (
    A_TURN,
    BROKER_DOWN,
    BUS_CLOSED,
    RETRY_AFTER,
    Accepted,
    NodePublisher,
    Result,
)
from msight_bus.nodes.node_run import LEFT_CANCELLED, NodeRun
from msight_bus.subscription import SharedSubscription, Subscription
from msight_bus.tasks import error_of_code

Handler = Callable[[Any], Awaitable[Result[Any]]]
Place = list[Any]
"""An entry of the window: the message, ``None`` once it is skipped, and the handler's result, or `_RUNNING`."""

_RUNNING = object()
CLOSED = ClosedError("The publish was cancelled.")


class InputWindow:
    """One run of a processing node or sink.

    ``concurrency`` workers take messages from the subscription's queue. With several workers, each input has an entry in the
    window, and outputs are published from the window's head on, in the order of the inputs. An input is pending until all its
    outputs are acknowledged; then the input is acknowledged. The next inputs are handled meanwhile.
    """

    def __init__(
        self, run: NodeRun, handler: Handler, subscription: Subscription[Any], publisher: NodePublisher | None
    ) -> None:
        """
        Args:
            run: the state of the run.
            handler: the node's code; called with each input.
            subscription: the node's input.
            publisher: publishes the outputs; ``None`` for a sink.
        """
        limits = run.bus.settings.limits
        self._run = run
        self._meter = run.meter
        self._config = config = run.config
        self._handler = handler
        self._subscription = subscription
        self._publisher = publisher
        self._limits = limits
        self._kind = config.subscribe_topic_data_type
        self._ordered = publisher is not None and config.concurrency > 1
        self._window: deque[Place] = deque()
        self._emitting = False
        self._pending: deque[tuple[Message, Sequence[Accepted]]] = deque()
        self._pending_bytes = 0
        self._watched: Accepted | None = None
        self._changed = asyncio.Event()  # set when the window or the pending inputs may have room
        self._shared = SharedSubscription(subscription)
        self._failure: Exception | None = None
        self._tasks = asyncio.TaskGroup()
        self._over = False  # set at the end: pending inputs are redelivered
        code = getattr(handler, "__qualname__", "The handler")
        self._share = LoopShare(code, run.logger, config.heartbeat_update_interval)
        if publisher is not None:
            publisher.on_failure = self._fail
            run.publishing = lambda: publisher.waits
        run.meter.queued = lambda: subscription.queued
        run.unfinished = lambda: (
            len(self._pending)
            + (sum(item[0] is not None for item in self._window) if self._ordered else len(run.busy_since))
        )

    async def run(self) -> None:
        """Handle messages until the input ends.

        Raises:
            Exception: the error that ended the run: of the node's code or of the bus.
        """
        name = self._config.name
        async with self._tasks as tasks:
            try:
                stopping = tasks.create_task(self._stop_receiving(), name=f"msight_bus stop {name}")
                workers = [
                    tasks.create_task(self._work(number), name=f"msight_bus handler {name} {number}")
                    for number in range(self._config.concurrency)
                ]
                self._run.tasks.update(workers)
                left: set[asyncio.Task[None]] = set(workers)
                while left:
                    ended, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                    if any(worker.cancelled() for worker in ended):
                        self._fail(RuntimeError(LEFT_CANCELLED))
                if self._publisher is not None:
                    await self._publisher.all_accepted()
                while self._pending:
                    await self._change()
            except BusError as error:
                self._fail(error)
            finally:
                self._over = True
            stopping.cancel()
        if self._failure is not None:
            raise self._failure

    async def _stop_receiving(self) -> None:
        await self._run.stopping.wait()
        await self._subscription.stop_receiving()

    def _fail(self, error: Exception) -> None:
        """End the run with an error; other workers finish the inputs that they are handling."""
        if self._failure is None:
            self._failure = error
        self._run.stopping.set()
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- taking

    async def _work(self, number: int) -> None:
        """Handle one message after the other, until the input ends or the run fails."""
        run, meter, share, handler = self._run, self._meter, self._share, self._handler
        publisher = self._publisher
        send = publisher.send_plain if publisher is not None and publisher.plain else None
        window, ordered = self._window, self._ordered
        loop_time, clock, busy_since = asyncio.get_running_loop().time, run.bus.core.clock, run.busy_since
        take, shared, kind, every = self._subscription.take, self._shared, self._kind, self._config.gap + 1
        buckets, debug = meter.buckets, run.logger.isEnabledFor
        began = loop_time()
        verbose = False
        try:
            while self._failure is None:
                now = loop_time()
                if now >= share.yield_at:
                    await share.yield_to_loop(began, now)
                    now = loop_time()
                message = take()
                if message is None:
                    busy_since.pop(number, None)
                    message = await shared.next()
                    if message is None or self._failure is not None:  # stays unacknowledged, as do the queued messages
                        return
                    now = loop_time()
                elif shared.idle:
                    shared.wake_one()
                began = busy_since[number] = now
                if share.held_since is None:
                    share.begin(now)
                    verbose = debug(logging.DEBUG)
                meter.messages_in += 1
                if every > 1 and (meter.messages_in - 1) % every:
                    await self._acknowledge(message, ())
                    continue
                if verbose:
                    run.logger.debug("Received %r of session %s.", message, message.session)
                place: Place | None = None
                if ordered:
                    place = [message, _RUNNING]
                    window.append(place)
                data: object = message.payload
                # The payload of Data is a MessagePack map: its first byte is above 0x80.
                if kind is not bytes and (
                    kind is not None or (message.payload > b"\x80" and looks_like_data(message.payload))
                ):
                    try:
                        data = self._subscription.decode(message.payload)
                    except DecodeError as error:
                        await self._undecodable(message, error, place)
                        continue
                try:
                    result = await handler(data)
                except BaseException as raised:
                    await self._code_failed(message, error_of_code(raised), place)
                    continue
                is_next = place is None or window[0] is place
                if send is not None and type(result) is bytes and is_next and not verbose:  # the common case
                    self._emitting = True
                    try:
                        accepted = await send(result)
                        meter.messages_out += 1
                        if accepted is not None:
                            await self._acknowledge(message, (accepted,))
                    except BusError as error:
                        await self._publish(message, result, error)
                    finally:
                        self._emitting = False
                    if place is not None:
                        window.popleft()
                        if window:
                            await self._emit()
                elif place is not None:
                    await self._made(place, result)
                elif publisher is None:
                    if message._settlement is not None:
                        message._settlement.settle(message)
                else:
                    await self._publish(message, result)
                latency = clock() - (message.published_at or message.received_at)
                if latency >= 0:
                    buckets[bisect_left(BOUNDS, latency)] += 1
        except Exception as error:  # an error of the bus; errors of the node's code are handled above
            self._fail(error)
        except asyncio.CancelledError:
            run.abandoned += not ordered and number in busy_since  # otherwise the window still has the input
            raise
        finally:
            busy_since.pop(number, None)
            shared.wake_one()

    # -- publishing and acknowledging

    async def _made(self, place: Place, result: object) -> None:
        """Store a handler's result, publish finished results from the window's head on, and wait while the window is full."""
        place[1] = result
        await self._emit()
        while len(self._window) >= 2 * self._config.concurrency and self._failure is None:
            await self._change()

    async def _emit(self) -> None:
        if self._emitting:
            return
        self._emitting = True
        try:
            while self._window and (made := self._window[0][1]) is not _RUNNING:
                if (message := self._window[0][0]) is not None:
                    await self._publish(message, made)
                self._window.popleft()
        finally:
            self._emitting = False
            self._changed.set()

    async def _publish(self, message: Message, result: object, error: BusError | None = None) -> None:
        """Publish a handler's result; the input is acknowledged when all outputs are.

        Args:
            message: the input.
            result: the handler's result.
            error: the error of a first attempt to send the result, if there was one.

        Raises:
            ClosedError, ConnectionLostError: the bus is closed or no longer reconnects.
        """
        accepted: list[Accepted] = []
        refused: BusError | None = None
        if self._publisher is not None and result is not None:
            try:
                outputs = self._publisher.outputs(result)
            except BusError as unfit:
                await self._code_failed(message, unfit)
                return
            for number, output in enumerate(outputs, 1):
                try:
                    done = await self._publisher.send(output, error)
                except BUS_CLOSED:
                    raise
                except BusError as refusal:
                    if self._config.action_on_error == "stop":
                        await self._code_failed(message, refusal, accepted=accepted)
                        return
                    self._run.code_failed(refusal)
                    refused = refused or refusal
                else:
                    if done is not None and (not accepted or accepted[-1] is not done):  # a batch shares one
                        accepted.append(done)
                if not number % A_TURN:
                    await asyncio.sleep(0)
        if refused is None:
            await self._acknowledge(message, accepted)
        else:
            await self._give_up(message, refused, None, accepted)

    async def _acknowledge(self, message: Message, accepted: Sequence[Accepted]) -> None:
        """Acknowledge an input once its outputs are acknowledged; waits while too many inputs are pending."""
        if not accepted and not self._pending:
            await message.ack()
            return
        size = len(message.payload)
        while self._pending and (
            len(self._pending) >= self._limits.max_in_flight or self._pending_bytes + size > self._limits.queue_bytes
        ):
            await self._change()
        self._pending.append((message, accepted))
        self._pending_bytes += size
        for one in accepted:
            if one is not self._watched or one.done():  # the outputs of a batch share one future
                self._watched = one
                one.add_done_callback(self._accepted)

    def _accepted(self, _: Accepted | None = None) -> None:
        """Acknowledge pending inputs from the head on, up to the first with an unacknowledged output."""
        while self._pending and not self._over and all(one.done() for one in self._pending[0][1]):
            message, accepted = self._pending.popleft()
            self._pending_bytes -= len(message.payload)
            errors = [CLOSED if one.cancelled() else one.exception() for one in accepted]
            if error := next(filter(None, errors), None):
                self._tasks.create_task(self._refused(message, error), name=f"msight_bus refused {self._config.name}")
            elif message._settlement is not None:
                message._settlement.settle(message)
        self._changed.set()

    async def _refused(self, message: Message, error: BaseException) -> None:
        """Handle the refusal of an output of ``message`` after it was sent; the publisher has counted it."""
        if isinstance(error, ClosedError) or self._publisher is None:
            return
        try:
            if isinstance(error, BROKER_DOWN):
                self._publisher.log_waiting(error)
                await message.nack()
            elif self._config.action_on_error == "continue":
                await self._give_up(message, error, None)
        except BusError as problem:
            self._run.logger.warning("Input not acknowledged; redelivered after a restart: %s", problem)

    # -- errors and dead letters

    async def _undecodable(self, message: Message, error: DecodeError, place: Place | None) -> None:
        """Count and skip an input that cannot be decoded; this is not an error of the node's code."""
        self._meter.undecodable += 1
        self._run.undecodable_lines.add(message.topic, 1, str(error))
        await self._give_up(message, error, place)

    async def _code_failed(
        self, message: Message, error: Exception, place: Place | None = None, accepted: Sequence[Accepted] = ()
    ) -> None:
        self._run.code_failed(error)
        if self._config.action_on_error == "stop":
            self._fail(error)
            await self._leave_out(place)
        else:
            await self._give_up(message, error, place, accepted)

    async def _give_up(
        self, message: Message, error: BaseException, place: Place | None, accepted: Sequence[Accepted] = ()
    ) -> None:
        """Dead-letter an input if configured, and acknowledge it."""
        if await self._dead_letter(message, error):
            await self._acknowledge(message, accepted)
        await self._leave_out(place)

    async def _leave_out(self, place: Place | None) -> None:
        """Remove an input from the window, so that the inputs after it are published."""
        if place is not None:
            place[0] = None
            await self._made(place, None)

    async def _dead_letter(self, message: Message, error: BaseException) -> bool:
        """Publish an input on the dead-letter topic, if there is one; return whether to acknowledge the input."""
        topic, bus = self._config.dead_letter_topic_name, self._run.bus
        if topic is None:
            return True
        why: Mapping[str, str] = {"msight-dead-topic": message.topic, "msight-dead-error": type(error).__name__}
        while True:
            try:
                if not await bus.core.dead_letter(message, topic, why):
                    self._run.unsent(topic, 1, "no dead letter")
            except BROKER_DOWN as problem:
                if not bus.capabilities.acknowledgement:
                    if isinstance(problem, ConnectionLostError):
                        raise
                    self._run.unsent(topic, 1, "no dead letter")
                    return True
                self._run.logger.warning("A dead letter waits for the broker: %s", problem)
                if self._run.stopping.is_set():
                    return False  # the input stays unacknowledged and is redelivered
                await asyncio.sleep(RETRY_AFTER)
            else:
                return True
