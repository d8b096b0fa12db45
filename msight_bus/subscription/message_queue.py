"""The bounded queue between a broker's stream and one consumer.

`MessageQueue.put` is synchronous: the messages of one socket read are put as one list, and the consumer is woken once for each
list. Flow control is a pair of callbacks. The queue has three final states: ended (no more messages; queued ones are delivered),
failed (an error follows the queued messages) and closed (nothing is delivered).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from msight_bus.errors import BusError, BusyError, ClosedError, fresh
from msight_bus.message import Message
from msight_bus.queue_policy import QueuePolicy
from msight_bus.subscription.latest_of_each import LatestOfEach

_BUSY = "Another task is iterating this subscription; a subscription has one consumer."


def _nothing() -> None:
    pass


class MessageQueue:
    """A queue of messages for one consumer, within the bounds of a `QueuePolicy`.

    With ``block``, messages that arrive before the stream is paused are queued above the bound.

    Attributes:
        messages: the queued messages, oldest first. A consumer that pops from the left must lower ``size`` and, if the queue is
            ``full``, call `taken`.
        size: bytes of the payloads, headers and keys in ``messages``.
        full: whether the stream was asked to pause.
        received: number of messages put.
        dropped: messages that were not delivered, by cause.
        dropped_of: messages that were not delivered, by topic and cause.
        peak: the maximum number of messages queued so far.
        ended: whether `end` was called.
        on_drop: called with the messages of each `drop` and its cause.
    """

    __slots__ = (
        "_blocks",
        "_check_from",
        "_closed",
        "_each",
        "_error",
        "_max_bytes",
        "_max_messages",
        "_on_full",
        "_on_room",
        "_over",
        "_policy",
        "_raised",
        "_shedding",
        "_waiter",
        "_wanted",
        "dropped",
        "dropped_of",
        "ended",
        "full",
        "messages",
        "on_drop",
        "peak",
        "received",
        "size",
    )

    def __init__(
        self,
        policy: QueuePolicy,
        *,
        many: bool = False,
        on_full: Callable[[], None] = _nothing,
        on_room: Callable[[], None] = _nothing,
    ) -> None:
        """
        Args:
            policy: the bounds, and the action at a bound.
            many: whether the messages can be of more than one topic; then ``latest`` keeps the latest of each.
            on_full: pauses the stream; only the ``block`` policy calls it.
            on_room: resumes the stream.
        """
        self._each = LatestOfEach(policy.max_messages) if many and policy.when_full == "latest" else None
        self.messages: deque[Message] | LatestOfEach = deque() if self._each is None else self._each
        self.size = 0
        self.full = False
        self.received = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_of: dict[str, Counter[str]] = {}
        self.peak = 0
        self.ended = False
        self.on_drop: Callable[[Sequence[Message], str], None] | None = None
        self._policy = policy
        self._max_messages = policy.max_messages
        self._check_from = policy.max_messages if self._each is None else 0
        self._max_bytes = policy.max_bytes
        self._blocks = policy.when_full == "block"
        self._on_full = on_full
        self._on_room = on_room
        self._shedding = False
        self._over = False
        self._error: BusError | None = None
        self._closed = False
        self._raised = False  # the error was raised once
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = 1

    # -- called by the stream

    @property
    def room(self) -> int:
        """Number of messages that still fit; a backend that fetches requests at most this number."""
        if self.size >= self._max_bytes and self.messages:
            return 0
        if self._each is not None:
            return self._max_messages
        return max(0, self._max_messages - len(self.messages))

    def put(self, batch: list[Message]) -> None:
        """Queue messages according to the policy, and wake the consumer once."""
        messages = self.messages
        queued = len(messages) + len(batch)
        size = self.size
        for message in batch:
            size += len(message.payload) + message._overhead
        if queued >= self._check_from or size >= self._max_bytes or self.full or self._over:
            self._put_at_bound(batch)
            return
        self.received += len(batch)
        messages.extend(batch)
        self.size = size
        if queued > self.peak:
            self.peak = queued
        waiter = self._waiter
        if waiter is not None and queued >= self._wanted and not waiter.done():
            waiter.set_result(None)

    def _put_at_bound(self, batch: list[Message]) -> None:
        """As `put`, if the queue is near a bound, full, or has ended."""
        self.received += len(batch)
        if self._closed or self.ended:
            self.drop(batch, "closed", done=False)
            return
        messages = self.messages
        if self._blocks and not self._shedding:
            messages.extend(batch)
            self.size += sum([len(message.payload) + message._overhead for message in batch])
            if not self.room and not self.full:
                self.full = True
                self._on_full()
        elif self._policy.when_full in ("drop_oldest", "latest"):
            messages.extend(batch)
            self.size += sum([len(message.payload) + message._overhead for message in batch])
            if self._each is None:
                self._drop_oldest()
            else:
                self._drop_oldest_of_each(self._each, batch)
        else:
            self._put_while_room(batch)
        if len(messages) > self.peak:
            self.peak = len(messages)
        self.wake()  # at the bound the consumer is woken even if fewer messages are queued than requested

    @property
    def _is_over(self) -> bool:
        """Whether the queue is over a bound; a single message always fits."""
        return len(self.messages) > 1 and (len(self.messages) > self._max_messages or self.size > self._max_bytes)

    def _drop_oldest(self) -> None:
        dropped: list[Message] = []
        while self._is_over:
            oldest = self.messages.popleft()
            self.size -= len(oldest.payload) + oldest._overhead
            dropped.append(oldest)
        self.drop(dropped, self._policy.when_full)

    def _drop_oldest_of_each(self, each: LatestOfEach, batch: list[Message]) -> None:
        dropped: list[Message] = []
        for topic in {message.topic for message in batch}:
            while (oldest := each.pop_surplus(topic)) is not None:
                self.size -= len(oldest.payload) + oldest._overhead
                dropped.append(oldest)
        while self.size > self._max_bytes and len(each) > 1:
            oldest = each.popleft()
            self.size -= len(oldest.payload) + oldest._overhead
            dropped.append(oldest)
        self.drop(dropped, self._policy.when_full)

    def _put_while_room(self, batch: list[Message]) -> None:
        dropped: list[Message] = []
        for message in batch:
            size = len(message.payload) + message._overhead
            full = len(self.messages) >= self._max_messages or self.size + size > self._max_bytes
            if full and self.messages:
                dropped.append(message)
            else:
                self.messages.append(message)
                self.size += size
        self.drop(dropped, "block_timeout" if self._shedding else "drop_newest")

    def shed(self) -> None:
        """Drop the newest messages over the bound until the consumer has made room: the stream cannot stay paused."""
        if not self.full:
            return
        self._shedding = True
        dropped: list[Message] = []
        while self._is_over:
            assert isinstance(self.messages, deque)  # a queue that blocks
            newest = self.messages.pop()
            self.size -= len(newest.payload) + newest._overhead
            dropped.append(newest)
        self.drop(reversed(dropped), "block_timeout")

    def requeue(self, message: Message) -> None:
        """Queue a message again in front of all others, even over the bound; not counted in ``received`` again."""
        if self._closed:
            self.drop([message], "closed", done=False)
            return
        self.messages.appendleft(message)
        self.size += len(message.payload) + message._overhead
        self.peak = max(self.peak, len(self.messages))
        if len(self.messages) >= self._wanted:
            self.wake()

    def drop(self, messages: Iterable[Message], cause: str, *, done: bool = True) -> None:
        """Count messages that are not delivered. Every message that is not delivered passes through this method.

        Args:
            messages: messages that are already removed from the queue.
            cause: the key in ``dropped``.
            done: whether to acknowledge records of a log, so that they are not redelivered.
        """
        dropped = list(messages)
        for message in dropped:
            if done and message._settlement is not None:
                message._settlement.settle(message)
        if dropped:
            self.dropped[cause] += len(dropped)
            for topic, count in Counter([message.topic for message in dropped]).items():
                self._count_dropped(topic, count, cause)
            if self.on_drop is not None:
                self.on_drop(dropped, cause)

    def _count_dropped(self, topic: str, count: int, cause: str) -> None:
        dropped = self.dropped_of.get(topic)
        if dropped is None:
            dropped = self.dropped_of[topic] = Counter()
        dropped[cause] += count

    def skip(self, topic: str, count: int) -> None:
        """Count ``count`` records of a topic that were skipped to continue near the end of the log."""
        self.received += count
        self.dropped["skipped"] += count
        self._count_dropped(topic, count, "skipped")

    def reject(self, count: int, cause: str) -> None:
        """Count messages that cannot be delivered and were not put."""
        self.received += count
        self.dropped[cause] += count

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Remove queued messages without acknowledging them: another member receives them.

        Args:
            unwanted: returns whether to remove a message.
            cause: the key in ``dropped``.
        """
        gone = [message for message in self.messages if unwanted(message)]
        if gone:
            kept = [message for message in self.messages if not unwanted(message)]
            self.messages.clear()
            self.messages.extend(kept)
            self.size = sum([len(message.payload) + message._overhead for message in kept])
            self.drop(gone, cause, done=False)
            self.taken()

    def end(self) -> None:
        """End the queue: no more messages are put, queued ones are still delivered."""
        self.ended = self._over = True
        self.wake()

    def fail(self, error: BusError) -> None:
        """Fail the queue: `wait` raises ``error`` after the queued messages."""
        if self._error is None and not self.ended:
            self._error = error
            self._over = True
            self.wake()

    def close(self) -> None:
        """Close the queue and drop the queued messages."""
        self._closed = self._over = True
        self.drop(self.messages, "closed", done=False)
        self.messages.clear()
        self.size = 0
        self.wake()

    # -- called by the consumer

    def taken(self) -> None:
        """Resume a paused stream once the queue is at half its bounds."""
        if self.full and len(self.messages) <= self._max_messages // 2 and self.size <= self._max_bytes // 2:
            self.full = self._shedding = False
            self._on_room()

    def take(self, at_most: int) -> list[Message]:
        """Remove and return the oldest messages, at most ``at_most``."""
        popleft = self.messages.popleft
        batch = [popleft() for _ in range(min(at_most, len(self.messages)))]
        self.size -= sum([len(message.payload) + message._overhead for message in batch])
        self.taken()
        return batch

    async def wait(self) -> bool:
        """Wait until a message is queued or the queue has ended.

        Nothing is removed from the queue, so a cancellation loses no message.

        Returns:
            Whether a message is queued.

        Raises:
            ClosedError: the queue was closed.
            BusyError: another task is waiting.
            BusError: the error of `fail`, once the queue is empty.
        """
        while not self.messages and not self._over:
            await self._wait_for(1, None)
        if self.messages:
            return True
        if self._error is not None or self._closed:
            if self._raised:
                await asyncio.sleep(0)  # a consumer that retries in a loop must not block the event loop
            self._raised = True
        if self._closed:
            raise ClosedError("The subscription is closed; call bus.subscribe() again.")
        if self._error is not None:
            raise fresh(self._error)
        return False

    async def wait_for_more(self, wanted: int, within: float) -> None:
        """Wait until ``wanted`` messages are queued, the queue is at its bound or has ended, or ``within`` seconds have passed.

        Raises:
            BusyError: another task is waiting.
        """
        if len(self.messages) < wanted and self.room and not self.full and not self._over and within > 0:
            await self._wait_for(wanted, within)

    async def _wait_for(self, wanted: int, within: float | None) -> None:
        if self._waiter is not None:
            raise BusyError(_BUSY)
        loop = asyncio.get_running_loop()
        self._wanted = wanted
        self._waiter = loop.create_future()
        timer = None if within is None else loop.call_later(within, self.wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._wanted = 1
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Wake the waiting consumer."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
