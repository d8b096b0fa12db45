"""`Subscription`: the async iterator of messages that users consume."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Literal, NoReturn, Self

from msight_bus.backends.base import Backend, Consumer, Selection
from msight_bus.data.types import DATA, PayloadType, T_co
from msight_bus.errors import ClosedError
from msight_bus.events import BusEvent
from msight_bus.loop_share import LONG_TURN, run_until_idle
from msight_bus.message import Message
from msight_bus.patterns import is_pattern, named
from msight_bus.settings import Limits
from msight_bus.subscription.inbox import Inbox, TopicStream
from msight_bus.subscription.latest_of_each import LatestOfEach
from msight_bus.subscription.stats import SubscriptionStats, TopicStats
from msight_bus.tasks import reraise_swallowed, run_shielded

AckMode = Literal["auto", "manual"]

TOO_OLD = "too old"


@dataclass(frozen=True, slots=True)
class SubscriptionOptions:
    """The options of a subscription that its backend does not need.

    Attributes:
        ack: ``"auto"``: requesting the next message acknowledges the previous one; ``"manual"``: ``message.ack()`` does.
        deadline: seconds without a message after which `DeadlineMissed` is reported.
        lifespan: seconds after which a message is dropped instead of delivered.
        type: type of the payloads.
    """

    ack: AckMode = "auto"
    deadline: float | None = None
    lifespan: float | None = None
    type: PayloadType[Any] = DATA


def check_seconds(name: str, value: object) -> None:
    """Check that ``value`` is ``None`` or a finite number of seconds above 0.

    Raises:
        ValueError: ``value`` is something else.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, or None, not {value!r}.")


class Subscription(Generic[T_co]):
    """Messages of one or more topics: an async context manager and an async iterator, for one consumer.

    Entering returns once the broker has confirmed the subscription. With ``ack="auto"``, requesting the next message
    acknowledges the previous one. On a backend with acknowledgement, iterating again after an exception or ``break``
    redelivers messages that are not acknowledged.

    Attributes:
        topics: the topics and patterns, as they were given.
        topic: the name of the topic; of several, the first names joined with commas.
        consumer: the task that iterates the subscription, ``None`` before the first request.
        decode: decodes a payload.
    """

    def __init__(
        self,
        backend: Backend,
        selection: Selection,
        options: SubscriptionOptions,
        *,
        limits: Limits,
        clock: Callable[[], float],
        check: Callable[[], None],
        report: Callable[[BusEvent], None],
        on_entered: Callable[[Subscription[Any]], None],
        on_closed: Callable[[Subscription[Any]], None],
        on_drop: Callable[[Sequence[Message[Any]], str], None] | None = None,
        entries: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            backend: the backend to subscribe on.
            selection: the topics, by their names on the broker, and the options that the backend needs.
            options: the other options.
            limits: deadlines and limits.
            clock: returns POSIX seconds.
            check: raises a `BusError` if the bus is closed, or the caller runs outside its thread, event loop or process.
            report: called with each event.
            on_entered: called when the broker has confirmed the subscription.
            on_closed: called when the subscription is closed.
            on_drop: called with the messages that are dropped and the cause.
            entries: the topics and patterns as they were given; empty: those of ``selection``.
        """
        self.topics = entries or selection.topics
        self.topic = named(self.topics)
        self.consumer: asyncio.Task[object] | None = None
        self._backend = backend
        self._selection = selection
        self._auto = options.ack == "auto"
        self._lifespan = options.lifespan
        self.decode = partial(options.type.decode, max_bytes=limits.max_decoded_bytes, max_nesting=limits.max_nesting)
        self._clock = clock
        self._check = check
        self._on_entered = on_entered
        self._on_closed = on_closed
        capabilities = backend.capabilities
        self._keeps = capabilities.persistence
        shares = selection.group_id is not None and capabilities.load_balancing
        self._inbox = Inbox(
            selection,
            counts=not self._keeps and not shares,
            deadline=options.deadline,
            most=limits.stats_topics,
            clock=clock,
            report=report,
            on_full=self._pause,
            on_room=self._resume,
        )
        self._inbox.queue.on_drop = on_drop
        self._counts = self._keeps or not shares
        self._queue = self._inbox.queue
        self._messages: deque[Any] | LatestOfEach = self._queue.messages
        for topic in selection.topics:
            self._inbox.stream(topic)
        self._at_broker: Consumer | None = None
        self._entered = False
        self._measured = 0  # messages received at the last measurement
        self._turned_at = 0.0  # time of the last yield to the event loop; used with a log only
        self._finished = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Subscribe.

        Raises:
            AuthenticationError: the broker refused the subscription.
            ConnectionLostError: the broker did not confirm within ``connect_timeout``.
            ClosedError: the bus is closed, or the subscription was entered before.
            BusError: called from another thread, event loop or process than the bus was opened in.
        """
        self._check()
        if self._entered:
            raise ClosedError("A subscription can be entered once; call bus.subscribe() again.")
        self._entered = True
        self._on_entered(self)
        try:
            await reraise_swallowed(self._subscribe())
        except BaseException:
            await self.close()
            raise
        if self._queue.full:
            self._pause()
        self._inbox.start_watching()
        self._turned_at = monotonic()
        return self

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        raise TypeError("Subscribe with `async with bus.subscribe(...) as messages:`.")

    async def _subscribe(self) -> None:
        self._at_broker = await self._backend.subscribe(self._selection, self._inbox)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Unsubscribe, commit the acknowledged messages, and drop queued messages.

        Raises:
            BusError: called from another thread, event loop or process, where the subscription cannot be closed.
        """
        if self._at_broker is not None:
            with contextlib.suppress(ClosedError):  # the bus closes it
                self._check()
        self._inbox.stop_watching()
        self._queue.close()
        self._finished.set()
        self._on_closed(self)
        at_broker, self._at_broker = self._at_broker, None
        if at_broker is not None:
            await run_shielded(at_broker.close())

    # -- consuming

    def __aiter__(self) -> AsyncIterator[Message[T_co]]:
        self._check_loop()
        self.consumer = asyncio.current_task()
        unacknowledged, self._inbox.unacknowledged = self._inbox.unacknowledged, []
        for message in reversed(unacknowledged):
            if not message._settled:
                message.redeliveries += 1
                self._queue.requeue(message)
        return self

    async def __anext__(self) -> Message[T_co]:
        inbox = self._inbox
        if inbox.unacknowledged:
            self._settle_returned()
        if self._keeps and monotonic() - self._turned_at > LONG_TURN:
            await self._yield_to_loop()
        messages = self._messages
        queue = self._queue
        while True:
            if not messages:
                self._begin_to_wait()
                if not await queue.wait():
                    self._end()
                self._turned_at = monotonic()
            message: Message[T_co] = messages.popleft()
            queue.size -= len(message.payload) + message._overhead
            if queue.full:
                queue.taken()
            if self._lifespan is None or self._drop_old([message]):
                break
        message._decode = self.decode
        if self._auto and message._settlement is not None:
            inbox.unacknowledged = [message]
        return message

    def take(self) -> Message[T_co] | None:
        """Return the next message if one is queued, as ``__anext__`` does with ``ack="manual"``; else ``None``."""
        messages = self._messages
        queue = self._queue
        while messages:
            message: Message[T_co] = messages.popleft()
            queue.size -= len(message.payload) + message._overhead
            if queue.full:
                queue.taken()
            if self._lifespan is None or self._drop_old([message]):
                message._decode = self.decode
                return message
        return None

    def batches(self, max_messages: int, within: float = 0.0) -> Batches[T_co]:
        """Return an async iterator of lists of 1 to ``max_messages`` messages.

        Args:
            max_messages: maximum length of a list, at least 1.
            within: seconds to wait for a full list after its first message.

        Raises:
            ValueError: ``max_messages`` is below 1.
        """
        if max_messages < 1:
            raise ValueError(f"max_messages must be at least 1, not {max_messages}.")
        return Batches(self, max_messages, within)

    async def next_batch(self, max_messages: int, within: float) -> list[Message[T_co]]:
        """Return the next list (`batches`); with ``ack="auto"``, acknowledges the previous list.

        Raises:
            StopAsyncIteration: the subscription has ended.
            BusError: as `MessageQueue.wait`.
        """
        if self._inbox.unacknowledged:
            self._settle_returned()
        if self._keeps and monotonic() - self._turned_at > LONG_TURN:
            await self._yield_to_loop()
        queue = self._queue
        while True:
            if not self._messages:
                self._begin_to_wait()
                if not await queue.wait():
                    self._end()
                self._turned_at = monotonic()
            await queue.wait_for_more(max_messages, within)
            batch: list[Any] = queue.take(max_messages)
            if self._lifespan is not None:
                batch = self._drop_old(batch)
            if batch:
                break
        for message in batch:
            message._decode = self.decode
        if self._auto and batch[0]._settlement is not None:
            self._inbox.unacknowledged = batch
        return batch

    async def _yield_to_loop(self) -> None:
        """Yield to the event loop. While messages are queued, requesting the next one does not wait, so that a consumer that only
        computes would delay heartbeats and commits."""
        before, self._turned_at = self._turned_at, monotonic()  # set even if the sleep is cancelled
        if self._messages:
            await run_until_idle(self._turned_at - before)
            self._turned_at = monotonic()

    def _begin_to_wait(self) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs
            task = None
        if task is None or self.consumer is not task:
            self._check_loop()
            self.consumer = asyncio.current_task()
        if not self._entered:
            raise ClosedError(
                "The subscription was not entered; use it inside `async with bus.subscribe(...) as messages:`."
            )

    def _check_loop(self) -> None:
        """Check that the caller runs in the thread, event loop and process of the bus.

        A closed bus is not an error here: the queued messages are still delivered, then `MessageQueue.wait` raises.

        Raises:
            BusError: the caller runs in another thread, event loop or process.
        """
        if not self._queue.ended and self._at_broker is not None:
            with suppress(ClosedError):
                self._check()

    def _end(self) -> NoReturn:
        self._finished.set()
        raise StopAsyncIteration

    def _settle_returned(self) -> None:
        unacknowledged, self._inbox.unacknowledged = self._inbox.unacknowledged, []
        for message in unacknowledged:
            if message._settlement is not None and not message._settled:
                message._settlement.settle(message)

    def _drop_old(self, batch: list[Any]) -> list[Any]:
        """Drop and acknowledge the messages older than the lifespan; return the others."""
        assert self._lifespan is not None
        born = self._clock() - self._lifespan
        # received_at is this machine's clock: the time in this queue counts even if the publisher's clock is wrong.
        old = [m for m in batch if m.received_at < born or (m.published_at is not None and m.published_at < born)]
        if not old:
            return batch
        self._queue.drop(old, TOO_OLD)
        gone = {id(message) for message in old}
        return [message for message in batch if id(message) not in gone]

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of the counters."""
        queue, inbox = self._queue, self._inbox
        queued = Counter([message.topic for message in queue.messages])
        topics = {stream.topic: self._stats_of(stream, queued[stream.topic]) for stream in inbox.streams}
        gone = inbox.evicted_gaps
        behind = self._at_broker.lag if self._at_broker is not None else None
        return SubscriptionStats(
            received=queue.received,
            delivered=queue.received - len(queue.messages) - queue.dropped.total(),
            dropped=MappingProxyType(dict(queue.dropped)),
            gaps=gone.gaps + sum(topic.gaps or 0 for topic in topics.values()) if self._counts else None,
            missing=gone.missing + sum(topic.missing or 0 for topic in topics.values()) if self._counts else None,
            duplicates=(
                gone.duplicates + sum(topic.duplicates or 0 for topic in topics.values()) if inbox.counts else None
            ),
            queued=len(queue.messages),
            queued_peak=queue.peak,
            deadlines_missed=inbox.deadlines_missed,
            lag=None if behind is None else behind + len(queue.messages),
            topics=MappingProxyType(topics),
            evicted=inbox.evicted,
        )

    def _stats_of(self, stream: TopicStream, queued: int) -> TopicStats:
        dropped = dict(self._queue.dropped_of.get(stream.topic, ()))
        return TopicStats(
            received=stream.received,
            delivered=max(0, stream.received - queued - sum(dropped.values())),
            dropped=MappingProxyType(dropped),
            gaps=stream.gaps if self._counts else None,
            missing=stream.total_missing if self._counts else None,
            duplicates=stream.duplicates,
        )

    def measure(self) -> Iterator[tuple[str, int, bool]]:
        """Yield each topic and pattern, the messages received since the last call, and whether the count is exact.

        Several patterns share one count.
        """
        received, self._measured = self._queue.received - self._measured, self._queue.received
        patterns = []
        for entry in self.topics:
            if is_pattern(entry):
                patterns.append(entry)
                continue
            stream = self._inbox.known(entry)
            count = 0
            if stream is not None:
                count, stream.measured = stream.received - stream.measured, stream.received
            received -= count
            yield entry, count, True
        for entry in patterns:
            yield entry, max(0, received), len(patterns) == 1

    @property
    def queued(self) -> int:
        """Number of messages in the queue."""
        return len(self._messages)

    # -- drain

    async def stop_receiving(self) -> None:
        """Stop receiving; the iterator ends after the queued messages."""
        self._inbox.stop_watching()
        try:
            if self._at_broker is not None:
                await self._at_broker.stop()
        finally:
            self._queue.end()
        if not self._messages and not self._inbox.unacknowledged and not self._being_consumed:
            self._finished.set()

    async def finished(self) -> None:
        """Wait until the iterator has ended."""
        await self._finished.wait()

    async def commit(self) -> None:
        """Commit the acknowledged messages."""
        if self._at_broker is not None:
            await self._at_broker.commit()

    @property
    def left(self) -> int:
        """Number of messages queued, or returned to the consumer and not acknowledged."""
        return len(self._messages) + len(self._inbox.unacknowledged)

    @property
    def _being_consumed(self) -> bool:
        return self.consumer is not None and not self.consumer.done()

    def _pause(self) -> None:
        if self._at_broker is not None:
            self._at_broker.pause()

    def _resume(self) -> None:
        if self._at_broker is not None:
            self._at_broker.resume()


class Batches(Generic[T_co]):
    """The async iterator of lists of messages that `Subscription.batches` returns."""

    def __init__(self, subscription: Subscription[T_co], max_messages: int, within: float) -> None:
        self._subscription = subscription
        self._max_messages = max_messages
        self._within = within

    def __aiter__(self) -> Self:
        aiter(self._subscription)
        return self

    async def __anext__(self) -> list[Message[T_co]]:
        return await self._subscription.next_batch(self._max_messages, self._within)
