"""Taking a topic's messages, giving them to a node's code and publishing what it makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msight_bus.data import decode, looks_like_data
from msight_bus.errors import BusError, ClosedError, ConnectionLostError, DecodeError
from msight_bus.message import Message
from msight_bus.nodes.life import Life, cancellation_requested
from msight_bus.nodes.loop_share import LoopShare
from msight_bus.nodes.outgoing import BROKER_AWAY, BUS_IS_OVER, Outlet, Output, as_outputs
from msight_bus.nodes.settling import Accepted, Settling
from msight_bus.nodes.turns import Turn, Turns
from msight_bus.subscription import Subscription

_RETRY_AFTER = 0.1  # seconds; a dead letter that finds no broker has waited ``publish_timeout`` already

Handler = Callable[[Any], Awaitable[Output | Sequence[Output] | None]]


class Handling:
    """One run of a node that takes messages (life.Inputs).

    ``concurrency`` handlers share the subscription. Each message is acknowledged when all its outputs are accepted, and
    meanwhile the next ones are handled.
    """

    def __init__(self, life: Life, handler: Handler, subscription: Subscription, outlet: Outlet | None) -> None:
        """``handler`` is the node's own code; ``outlet`` is ``None`` where nothing is published."""
        limits = life.bus.settings.limits
        self._life = life
        self._config = life.config
        self._handler = handler
        self._subscription = subscription
        self._outlet = outlet
        self._max_bytes = limits.max_decoded_bytes
        self._max_nesting = limits.max_nesting
        self._settling = Settling(
            max_messages=limits.max_in_flight, max_bytes=limits.queue_bytes, refused=self._output_refused
        )
        self._turns = Turns(ordered=outlet is not None and life.config.concurrency > 1)
        self._one_at_a_time = asyncio.Lock()
        self._taken = 0
        self._failure: Exception | None = None
        code = getattr(handler, "__qualname__", "The handler")
        self._share = LoopShare(code, life.logger, life.config.heartbeat_update_interval)
        self._complain_at = 0.0

    @property
    def queued(self) -> int:
        """Messages that wait."""
        return self._subscription.stats.queued

    @property
    def dropped(self) -> int:
        """Messages dropped since the start."""
        return sum(self._subscription.stats.dropped.values())

    @property
    def unsettled(self) -> int:
        """Messages that were handled, whose outputs are on their way."""
        return len(self._settling)

    async def run(self) -> None:
        """Handle messages until the input ends.

        Raises:
            Exception: what ended it before: an error in the node's code, or of the bus.
        """
        name = self._config.name
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self._end_intake(), name=f"msight_bus intake {name}"),
                tasks.create_task(self._settling.run(), name=f"msight_bus settling {name}"),
            ]
            handlers = [
                tasks.create_task(self._take(n), name=f"msight_bus handler {name} {n}")
                for n in range(self._config.concurrency)
            ]
            self._life.tasks.update(handlers)
            await asyncio.wait(handlers)
            try:
                if self._outlet is not None:
                    await self._outlet.all_accepted()
                await self._settling.finish()
            except BusError as error:
                self._fail(error)
            for helper in helpers:
                helper.cancel()
        if self._failure is not None:
            raise self._failure

    async def _end_intake(self) -> None:
        await self._life.stopping.wait()
        await self._subscription.end_intake()

    def _fail(self, error: Exception) -> None:
        """Take nothing more; what other handlers have in hand is finished."""
        if self._failure is None:
            self._failure = error
        self._life.stopping.set()

    async def _take(self, number: int) -> None:
        """Handle one message after the other."""
        in_hand = self._life.in_hand
        messages = aiter(self._subscription)
        try:
            while True:
                async with self._one_at_a_time:
                    try:
                        message = await anext(messages)
                    except StopAsyncIteration:
                        return
                    if self._failure is not None:
                        return  # it stays unacknowledged, as all that is queued behind it
                    turn = self._turns.next()
                began = in_hand[number] = self._share.begins()
                try:
                    await self._handle(message, turn)
                finally:
                    del in_hand[number]
                    turn.end()
                await self._share.ended(began)
        except Exception as error:  # the bus's; errors in the node's code are dealt with where they happen
            self._fail(error)

    async def _handle(self, message: Message, turn: Turn) -> None:
        self._life.meter.messages_in += 1
        self._taken += 1
        # The first of each gap + 1 is handled, so that a short stream is not an empty one.
        if (self._taken - 1) % (self._config.gap + 1):
            await message.ack()
            return
        try:
            data = self._decode(message.payload)
        except DecodeError as error:
            self._count_undecodable(error)
            await self._give_up(message, [], error)
            return
        accepted: list[Accepted] = []
        try:
            outputs = as_outputs(await self._call(data), self._config.publish_topic_data_type)
        except Exception as error:
            await self._code_failed(message, accepted, error)
            return
        if self._outlet is not None:
            await turn.begins()
            try:
                for output in outputs:
                    done = await self._outlet.send(output)
                    if done is not None:
                        accepted.append(done)
            except BUS_IS_OVER:
                raise
            except BusError as error:
                await self._code_failed(message, accepted, error)
                return
        self._life.meter.took(self._life.bus.core.clock() - (message.published_at or message.received_at))
        await self._finish(message, accepted)

    def _decode(self, payload: bytes) -> object:
        kind = self._config.subscribe_topic_data_type
        if kind is bytes or (kind is None and not looks_like_data(payload)):
            return payload
        value = decode(payload, max_bytes=self._max_bytes, max_nesting=self._max_nesting)
        if kind is not None and not isinstance(value, kind):
            raise DecodeError(f"The data is {type(value).__name__}, not {kind.__name__}")
        return value

    def _count_undecodable(self, error: DecodeError) -> None:
        """Count it, and say so when it begins and once an interval while it goes on."""
        self._life.meter.undecodable += 1
        now = asyncio.get_running_loop().time()
        if now >= self._complain_at:
            self._complain_at = now + self._config.heartbeat_update_interval
            so_far = self._life.meter.undecodable
            self._life.logger.warning("Left out an input that cannot be decoded (%d so far): %s", so_far, error)

    async def _call(self, data: object) -> object:
        try:
            return await self._handler(data)
        except asyncio.CancelledError as error:
            if cancellation_requested():
                raise
            raise RuntimeError("The node's code raised CancelledError, and nobody had cancelled it.") from error

    async def _finish(self, message: Message, accepted: list[Accepted]) -> None:
        """Acknowledge the input: now, or when its outputs are accepted."""
        if accepted:
            await self._settling.add(message, accepted)
        else:
            await message.ack()

    async def _code_failed(self, message: Message, accepted: list[Accepted], error: Exception) -> None:
        self._life.code_failed(error)
        if self._config.action_on_error == "stop":
            self._fail(error)
        else:
            await self._give_up(message, accepted, error)

    async def _give_up(self, message: Message, accepted: list[Accepted], error: Exception) -> None:
        """An input that cannot be handled is done, and before that on the dead-letter topic if there is one."""
        topic = self._config.dead_letter_topic_name
        if topic is not None:
            why = {"msight-dead-topic": message.topic, "msight-dead-error": type(error).__name__}
            if not await self._dead_letter(message, topic, why):
                return
        await self._finish(message, accepted)

    async def _dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Dead-letter an input; returns whether it is done. An input that cannot be dead-lettered is done and counted."""
        bus = self._life.bus
        while True:
            try:
                if not await bus.core.dead_letter(message, topic, why):
                    self._life.meter.unsent += 1
            except BROKER_AWAY as problem:
                if not bus.capabilities.acknowledgement:
                    if isinstance(problem, ConnectionLostError):
                        raise
                    self._life.meter.unsent += 1
                    return True
                self._life.logger.warning("A dead letter waits for the broker: %s", problem)
                if self._life.stopping.is_set():
                    return False  # it stays unacknowledged, and comes again
                await asyncio.sleep(_RETRY_AFTER)
            else:
                return True

    async def _output_refused(self, message: Message, error: BusError) -> None:
        """An output of ``message`` was not accepted, which is known only now."""
        if isinstance(error, ClosedError) or self._outlet is None:
            return
        if not isinstance(error, BROKER_AWAY):
            await self._code_failed(message, [], error)
            return
        self._outlet.broker_is_away(error)
        try:
            await message.nack()
        except BusError as problem:
            self._life.logger.warning("An input stays unacknowledged and comes again at the next start: %s", problem)
