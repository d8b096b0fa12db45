"""One consumer's view of a topic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import MappingProxyType, TracebackType
from typing import Literal, NoReturn, Self

from msight_bus.accounting import SequenceTracker, SubscriptionStats
from msight_bus.adapters.base import Adapter, Feed, SubscribeRequest
from msight_bus.adapters.ending import finish, heeding
from msight_bus.channel import Channel
from msight_bus.errors import BusError, ClosedError
from msight_bus.events import BusEvent, Gap
from msight_bus.message import Message
from msight_bus.settings import Limits

AckMode = Literal["auto", "manual"]


class Subscription:
    """Messages of one topic: an async context manager and an async iterator, for one consumer.

    Entering returns once the broker has confirmed. With ``ack="auto"`` asking for the next message marks the one before
    it as done; iterating anew after an exception or ``break`` delivers an unacknowledged message again on a backend with
    acknowledgement.
    """

    def __init__(
        self,
        adapter: Adapter,
        request: SubscribeRequest,
        *,
        ack: AckMode,
        limits: Limits,
        report: Callable[[BusEvent], None],
        on_closed: Callable[[Subscription], None],
    ) -> None:
        self.topic = request.topic
        self._adapter = adapter
        self._request = request
        self._auto = ack == "auto"
        self._limits = limits
        self._report = report
        self._on_closed = on_closed
        self._channel = Channel(request.queue, on_full=self._pause, on_room=self._resume)
        self._items = self._channel.items
        # A log finds gaps by its offsets; members of a group each see a part of the stream.
        counted = not adapter.capabilities.persistence and (
            request.group_id is None or not adapter.capabilities.load_balancing
        )
        self._tracker = SequenceTracker() if counted else None
        self._announced = 0
        self._announced_missing = 0
        self._feed: Feed | None = None
        self._full = False
        self._entered = False
        self._in_hand: list[Message] = []
        self._consumer: asyncio.Task[object] | None = None
        self._finished = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Subscribe.

        Raises:
            BusError: the broker refused, or did not confirm within ``connect_timeout``.
        """
        if self._entered:
            raise ClosedError("A subscription is entered once; call bus.subscribe() again.")
        self._entered = True
        try:
            await heeding(self._subscribe())
        except BaseException:
            await self.close()
            raise
        if self._full and self._feed is not None:
            self._feed.pause()
        return self

    async def _subscribe(self) -> None:
        self._feed = await self._adapter.subscribe(self._request, self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Unsubscribe, commit what is done and hand out nothing more."""
        self._channel.close()
        self._finished.set()
        self._on_closed(self)
        feed, self._feed = self._feed, None
        if feed is not None:
            await finish(feed.close())

    # -- the consumer's side

    def __aiter__(self) -> AsyncIterator[Message]:
        self._consumer = asyncio.current_task()
        for message in reversed(self._in_hand):
            if not message._settled:
                message.redeliveries += 1
                self._channel.put_back(message)
        self._in_hand = []
        return self

    async def __anext__(self) -> Message:
        if self._in_hand:
            self._settle_in_hand()
        items = self._items
        channel = self._channel
        if not items:
            self._check_consumer()
            if not await channel.wait():
                self._end()
        message = items.popleft()
        channel.queued_bytes -= len(message.payload)
        if channel.full:
            channel.popped(0)
        message._limits = self._limits
        if self._auto and message._settlement is not None:
            self._in_hand = [message]
        return message

    def batches(self, max_messages: int, within: float = 0.0) -> Batches:
        """Lists of 1 to ``max_messages`` messages, each within ``within`` seconds of its first; one wake-up a list."""
        if max_messages < 1:
            raise ValueError(f"max_messages is at least 1, not {max_messages}.")
        return Batches(self, max_messages, within)

    async def next_batch(self, max_messages: int, within: float) -> list[Message]:
        """The next list; asking for it marks the one before as done."""
        if self._in_hand:
            self._settle_in_hand()
        items = self._items
        while True:
            if not items:
                self._check_consumer()
                if not await self._channel.wait():
                    self._end()
            await self._channel.wait_for_more(max_messages, within)
            batch = [items.popleft() for _ in range(min(max_messages, len(items)))]
            if batch:
                break
        self._channel.popped(sum([len(message.payload) for message in batch]))
        for message in batch:
            message._limits = self._limits
        if self._auto and batch[0]._settlement is not None:
            self._in_hand = batch
        return batch

    def _check_consumer(self) -> None:
        self._consumer = asyncio.current_task()
        if not self._entered:
            raise ClosedError("Enter the subscription first: async with bus.subscribe(...) as messages.")

    def _end(self) -> NoReturn:
        self._finished.set()
        raise StopAsyncIteration

    def _settle_in_hand(self) -> None:
        in_hand, self._in_hand = self._in_hand, []
        for message in in_hand:
            if message._settlement is not None and not message._settled:
                message._settlement.settle(message)

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of the counters."""
        channel, tracker = self._channel, self._tracker
        counted = tracker is not None or self._adapter.capabilities.persistence
        behind = self._feed.lag if self._feed is not None else None
        return SubscriptionStats(
            received=channel.received,
            delivered=channel.received - channel.queued - channel.dropped.total(),
            dropped=MappingProxyType(dict(channel.dropped)),
            gaps=self._announced if counted else None,
            missing=(tracker.missing if tracker is not None else self._announced_missing) if counted else None,
            duplicates=tracker.duplicates if tracker is not None else None,
            queued=channel.queued,
            queued_peak=channel.peak,
            lag=behind + channel.queued if behind is not None else None,
        )

    # -- drain

    async def end_intake(self) -> None:
        """Nothing more comes in; what is queued is handed out and the iterator ends."""
        try:
            if self._feed is not None:
                await self._feed.stop()
        finally:
            self._channel.end()
        if not self._items and not self._in_hand and not self._being_consumed:
            self._finished.set()

    async def finished(self) -> None:
        """Wait until the iterator has ended."""
        await self._finished.wait()

    async def commit(self) -> None:
        """Make what is done durable."""
        if self._feed is not None:
            await self._feed.commit()

    @property
    def left(self) -> int:
        """Messages queued or in hand."""
        return self._channel.queued + len(self._in_hand)

    @property
    def consumer(self) -> asyncio.Task[object] | None:
        """The task that iterates."""
        return self._consumer

    @property
    def _being_consumed(self) -> bool:
        return self._consumer is not None and not self._consumer.done()

    # -- the feed's side (adapters.base.Sink)

    def deliver(self, batch: list[Message]) -> None:
        """Queue the messages of one chunk, at least one."""
        if self._tracker is not None:
            for missing in self._tracker.observe(batch):
                self._announce(missing, "lost")
        self._channel.deliver(batch)

    def announce_gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Messages are missing, ``missing`` or at most so many; ``None`` if how many cannot be known."""
        self._announced_missing += missing or 0
        self._announce(missing, cause, at_most=at_most)

    def announced(self, session: int, highest: int) -> None:
        """A publisher says that ``highest`` was its last sequence on this topic."""
        missing = self._tracker.announced(session, highest) if self._tracker is not None else 0
        if missing:
            self._announce(missing, "lost")

    def _announce(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        self._announced += 1
        self._report(Gap(self.topic, missing, cause, at_most=at_most))

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Take queued messages back: they are delivered elsewhere."""
        self._channel.discard(unwanted, cause)
        self._in_hand = [message for message in self._in_hand if not unwanted(message)]

    def put_back(self, message: Message) -> None:
        """Deliver a message again."""
        self._in_hand = [held for held in self._in_hand if held is not message]
        self._channel.put_back(message)

    def drop(self, message: Message, cause: str) -> None:
        """Count a delivered message as dropped, and settle it."""
        self._in_hand = [held for held in self._in_hand if held is not message]
        self._channel.drop_taken((message,), cause)

    def skip(self, count: int) -> None:
        """So many messages of a log, at most, are passed over for fresh ones."""
        self._channel.received += count
        self._channel.dropped["skipped"] += count

    def shed(self) -> None:
        """The feed cannot be paused any longer."""
        self._channel.shed()

    def fail(self, error: BusError) -> None:
        """The feed is broken for good."""
        self._channel.fail(error)

    @property
    def room(self) -> int:
        """Messages that the queue still takes."""
        return self._channel.room

    def _pause(self) -> None:
        self._full = True
        if self._feed is not None:
            self._feed.pause()

    def _resume(self) -> None:
        self._full = False
        if self._feed is not None:
            self._feed.resume()


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
