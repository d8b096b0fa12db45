"""One consumer's view of what it has subscribed to."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Literal, NoReturn, Self

from msight_bus.backends.base import Backend, Consumer, Selection
from msight_bus.errors import ClosedError
from msight_bus.events import BusEvent
from msight_bus.message import Message
from msight_bus.settings import Limits
from msight_bus.subscription.inbox import Inbox
from msight_bus.subscription.stats import SubscriptionStats
from msight_bus.tasks import reraise_swallowed, run_shielded

AckMode = Literal["auto", "manual"]

TOO_OLD = "too old"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a subscription hands out its messages.

    Attributes:
        ack: whether asking for the next message marks the one before as done.
        deadline: seconds without a message after which that is reported.
        lifespan: seconds after which a message is dropped instead of handed out.
    """

    ack: AckMode = "auto"
    deadline: float | None = None
    lifespan: float | None = None


def check_seconds(name: str, value: object) -> None:
    """Refuse what is neither ``None`` nor a number of seconds above 0.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is a number of seconds above 0, or None, not {value!r}.")


def _current_task() -> asyncio.Task[object] | None:
    """The current task; ``None`` outside a running loop too."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Subscription:
    """Messages of one topic: an async context manager and an async iterator, for one consumer.

    Entering returns once the broker has confirmed. With ``ack="auto"`` asking for the next message marks the one before
    it as done; iterating anew after an exception or ``break`` delivers an unacknowledged message again on a backend with
    acknowledgement.

    Attributes:
        topic: what it is subscribed to, for people.
        consumer: the task that iterates it.
    """

    def __init__(
        self,
        backend: Backend,
        selection: Selection,
        terms: Terms,
        *,
        limits: Limits,
        clock: Callable[[], float],
        check: Callable[[], None],
        report: Callable[[BusEvent], None],
        on_entered: Callable[[Subscription], None],
        on_closed: Callable[[Subscription], None],
    ) -> None:
        """``check`` raises where the bus cannot be used, and ``clock`` gives POSIX seconds."""
        self.topic = selection.name
        self.consumer: asyncio.Task[object] | None = None
        self._backend = backend
        self._selection = selection
        self._auto = terms.ack == "auto"
        self._lifespan = terms.lifespan
        self._limits = limits
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
            deadline=terms.deadline,
            clock=clock,
            report=report,
            on_full=self._pause,
            on_room=self._resume,
        )
        self._counts = self._keeps or not shares
        self._queue = self._inbox.queue
        self._messages = self._queue.messages
        for topic in selection.topics:
            self._inbox.stream(topic)
        self._at_broker: Consumer | None = None
        self._entered = False
        self._finished = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Subscribe.

        Raises:
            BusError: the broker refused, or did not confirm within ``connect_timeout``.
        """
        self._check()
        if self._entered:
            raise ClosedError("A subscription is entered once; call bus.subscribe() again.")
        self._entered = True
        self._on_entered(self)
        try:
            await reraise_swallowed(self._subscribe())
        except BaseException:
            await self.close()
            raise
        if self._queue.full:
            self._pause()
        if self._inbox.deadline is not None:
            self._inbox.deadline.start()
        return self

    async def _subscribe(self) -> None:
        self._at_broker = await self._backend.subscribe(self._selection, self._inbox)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Unsubscribe, commit what is done and hand out nothing more.

        Raises:
            BusError: this is another thread, event loop or process, where nothing of it can be ended.
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

    # -- the consumer's side

    def __aiter__(self) -> AsyncIterator[Message]:
        self._check_loop()
        self.consumer = asyncio.current_task()
        in_hand, self._inbox.in_hand = self._inbox.in_hand, []
        for message in reversed(in_hand):
            if not message._settled:
                message.redeliveries += 1
                self._queue.put_back(message)
        return self

    async def __anext__(self) -> Message:
        inbox = self._inbox
        if inbox.in_hand:
            self._settle_in_hand()
        messages = self._messages
        queue = self._queue
        while True:
            if not messages:
                self._begin_to_wait()
                if not await queue.wait():
                    self._end()
            message = messages.popleft()
            queue.size -= len(message.payload) + message._overhead
            if queue.full:
                queue.taken()
            if self._lifespan is None or self._drop_old([message]):
                break
        message._limits = self._limits
        if self._auto and message._settlement is not None:
            inbox.in_hand = [message]
        return message

    def batches(self, max_messages: int, within: float = 0.0) -> Batches:
        """Lists of 1 to ``max_messages`` messages, each within ``within`` seconds of its first; one wake-up a list."""
        if max_messages < 1:
            raise ValueError(f"max_messages is at least 1, not {max_messages}.")
        return Batches(self, max_messages, within)

    async def next_batch(self, max_messages: int, within: float) -> list[Message]:
        """The next list; asking for it marks the one before as done."""
        if self._inbox.in_hand:
            self._settle_in_hand()
        queue = self._queue
        while True:
            if not self._messages:
                self._begin_to_wait()
                if not await queue.wait():
                    self._end()
            await queue.wait_for_more(max_messages, within)
            batch = queue.take(max_messages)
            if self._lifespan is not None:
                batch = self._drop_old(batch)
            if batch:
                break
        for message in batch:
            message._limits = self._limits
        if self._auto and batch[0]._settlement is not None:
            self._inbox.in_hand = batch
        return batch

    def _begin_to_wait(self) -> None:
        if self.consumer is None or self.consumer is not _current_task():
            self._check_loop()
            self.consumer = asyncio.current_task()
        if not self._entered:
            raise ClosedError("Enter the subscription first: async with bus.subscribe(...) as messages.")

    def _check_loop(self) -> None:
        """See that this is the loop of the bus; that the bus is closed is told when what is queued was handed out."""
        if not self._queue.ended and self._at_broker is not None:
            with suppress(ClosedError):
                self._check()

    def _end(self) -> NoReturn:
        self._finished.set()
        raise StopAsyncIteration

    def _settle_in_hand(self) -> None:
        in_hand, self._inbox.in_hand = self._inbox.in_hand, []
        for message in in_hand:
            if message._settlement is not None and not message._settled:
                message._settlement.settle(message)

    def _drop_old(self, batch: list[Message]) -> list[Message]:
        """What of ``batch`` is young enough; the rest is dropped, and counts as done."""
        assert self._lifespan is not None
        born = self._clock() - self._lifespan
        # Time in this queue is known whatever the publisher's clock says.
        old = [m for m in batch if m.received_at < born or (m.published_at is not None and m.published_at < born)]
        if not old:
            return batch
        self._queue.drop(old, TOO_OLD)
        gone = {id(message) for message in old}
        return [message for message in batch if id(message) not in gone]

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of the counters."""
        queue, streams = self._queue, self._inbox.streams
        trackers = [stream.tracker for stream in streams if stream.tracker is not None]
        missing = sum(stream.missing for stream in streams) + sum(tracker.missing for tracker in trackers)
        deadline = self._inbox.deadline
        behind = self._at_broker.lag if self._at_broker is not None else None
        return SubscriptionStats(
            received=queue.received,
            delivered=queue.received - len(queue.messages) - queue.dropped.total(),
            dropped=MappingProxyType(dict(queue.dropped)),
            gaps=sum(stream.gaps for stream in streams) if self._counts else None,
            missing=missing if self._counts else None,
            duplicates=sum(tracker.duplicates for tracker in trackers) if trackers else None,
            queued=len(queue.messages),
            queued_peak=queue.peak,
            deadlines_missed=0 if deadline is None else deadline.missed,
            lag=None if behind is None else behind + len(queue.messages),
        )

    # -- drain

    async def end_intake(self) -> None:
        """Nothing more comes in; what is queued is handed out and the iterator ends."""
        self._inbox.stop_watching()
        try:
            if self._at_broker is not None:
                await self._at_broker.stop()
        finally:
            self._queue.end()
        if not self._messages and not self._inbox.in_hand and not self._being_consumed:
            self._finished.set()

    async def finished(self) -> None:
        """Wait until the iterator has ended."""
        await self._finished.wait()

    async def commit(self) -> None:
        """Make what is done durable."""
        if self._at_broker is not None:
            await self._at_broker.commit()

    @property
    def left(self) -> int:
        """Messages queued or in hand."""
        return len(self._messages) + len(self._inbox.in_hand)

    @property
    def _being_consumed(self) -> bool:
        return self.consumer is not None and not self.consumer.done()

    def _pause(self) -> None:
        if self._at_broker is not None:
            self._at_broker.pause()

    def _resume(self) -> None:
        if self._at_broker is not None:
            self._at_broker.resume()


class Batches:
    """Iterates a subscription in lists."""

    def __init__(self, subscription: Subscription, max_messages: int, within: float) -> None:
        self._subscription = subscription
        self._max_messages = max_messages
        self._within = within

    def __aiter__(self) -> Self:
        aiter(self._subscription)
        return self

    async def __anext__(self) -> list[Message]:
        return await self._subscription.next_batch(self._max_messages, self._within)
