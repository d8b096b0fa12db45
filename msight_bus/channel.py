"""The bounded queue between a broker's stream and one consumer.

The feed side is synchronous: a chunk read from a socket is parsed and delivered as one list, and the one waiter is
woken once a list. Flow control is a pair of callbacks, so that it is tested without a network. Three facts are kept
apart: ended (nothing more comes, what is queued is handed out), broken (an error follows what is queued) and closed
(nothing is handed out).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable

from msight_bus.errors import BusError, BusyError, ClosedError
from msight_bus.message import Message
from msight_bus.queues import QueuePolicy

_BUSY = "Another task is iterating this subscription; a subscription has one consumer."


def _nothing() -> None:
    pass


class Channel:
    """Bounded queue of messages with one consumer.

    Attributes:
        items: the queued messages, oldest first. The consumer pops from the left, then calls `popped`; while the channel is not
            `full`, taking the payload's size from `queued_bytes` is enough.
        queued_bytes: of the payloads in `items`.
        full: the feed was asked to pause.
        received: messages that the feed has delivered.
        dropped: messages dropped, by cause.
        peak: the most messages ever queued.
        ended: nothing more will be delivered.
    """

    __slots__ = (
        "_blocks",
        "_closed",
        "_error",
        "_finished",
        "_held",
        "_low_bytes",
        "_low_messages",
        "_max_bytes",
        "_max_messages",
        "_on_full",
        "_on_room",
        "_policy",
        "_shedding",
        "_waiter",
        "_wanted",
        "dropped",
        "ended",
        "full",
        "items",
        "peak",
        "queued_bytes",
        "received",
    )

    def __init__(
        self,
        policy: QueuePolicy,
        *,
        on_full: Callable[[], None] = _nothing,
        on_room: Callable[[], None] = _nothing,
    ) -> None:
        """``on_full`` asks the feed to pause and ``on_room`` to go on; only the ``block`` policy calls them."""
        self.items: deque[Message] = deque()
        self.received = 0
        self.dropped: Counter[str] = Counter()
        self.peak = 0
        self.ended = False
        self._finished = False
        self._policy = policy
        self._max_messages = policy.max_messages
        self._max_bytes = policy.max_bytes
        self._blocks = policy.when_full == "block"
        self._low_messages = policy.max_messages // 2
        self._low_bytes = policy.max_bytes // 2
        self.queued_bytes = 0
        self._held: deque[Message] = deque()
        self.full = False
        self._shedding = False
        self._on_full = on_full
        self._on_room = on_room
        self._error: BusError | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = 1

    # -- feed side

    @property
    def queued(self) -> int:
        """Messages that wait for the consumer, with those of the last read that did not fit."""
        return len(self.items) + len(self._held)

    @property
    def room(self) -> int:
        """Messages that still fit; a feed that can choose how much it reads asks for this many."""
        if self.queued_bytes >= self._policy.max_bytes and self.items:
            return 0
        return max(0, self._policy.max_messages - len(self.items))

    def deliver(self, batch: list[Message]) -> None:
        """Queue a chunk's messages by the policy and wake the consumer once."""
        items = self.items
        queued = len(items) + len(batch)
        size = self.queued_bytes
        for message in batch:
            size += len(message.payload)
        if queued >= self._max_messages or size >= self._max_bytes or self.full or self._finished:
            self._deliver_by_policy(batch)
            return
        self.received += len(batch)
        items.extend(batch)
        self.queued_bytes = size
        if queued > self.peak:
            self.peak = queued
        waiter = self._waiter
        if waiter is not None and queued >= self._wanted and not waiter.done():
            waiter.set_result(None)

    def _deliver_by_policy(self, batch: list[Message]) -> None:
        """At a bound, or near it, or after the end."""
        self.received += len(batch)
        if not batch:
            return
        if self._closed or self.ended:
            self.dropped["closed"] += len(batch)  # not settled: a log delivers them again
            return
        items = self.items
        policy = self._policy
        size = sum([len(message.payload) for message in batch])
        fits = len(items) + len(batch) <= policy.max_messages and self.queued_bytes + size <= policy.max_bytes
        if fits and not self._held:
            items.extend(batch)
            self.queued_bytes += size
            if self._blocks and not self.room:
                self._fill()
        elif self._held or (self._blocks and not self._shedding):
            self._hold_back(batch)
        elif policy.when_full in ("drop_oldest", "latest"):
            self._admit_newest(batch)
        else:
            self._admit_while_room(batch)
        if len(items) > self.peak:
            self.peak = len(items)
        if self._waiter is not None and (len(items) >= self._wanted or not fits or not self.room):
            self.wake()  # a queue at its bound takes no more, however many the consumer wants

    def _hold_back(self, batch: list[Message]) -> None:
        """Queue what fits and keep the rest of this read for later; the feed is paused, so that is all there is."""
        self._held.extend(batch)
        self._take_held()
        self._fill()

    def _fill(self) -> None:
        if not self.full:
            self.full = True
            self._on_full()

    def _take_held(self) -> None:
        items, held, policy = self.items, self._held, self._policy
        while held:
            size = len(held[0].payload)
            if items and (len(items) >= policy.max_messages or self.queued_bytes + size > policy.max_bytes):
                break
            items.append(held.popleft())
            self.queued_bytes += size
        if len(items) > self.peak:
            self.peak = len(items)

    def _admit_newest(self, batch: list[Message]) -> None:
        items, policy = self.items, self._policy
        dropped: list[Message] = []
        for message in batch:
            size = len(message.payload)
            while items and (len(items) >= policy.max_messages or self.queued_bytes + size > policy.max_bytes):
                oldest = items.popleft()
                self.queued_bytes -= len(oldest.payload)
                dropped.append(oldest)
            items.append(message)
            self.queued_bytes += size
        self._drop(dropped, policy.when_full)

    def _admit_while_room(self, batch: list[Message]) -> None:
        items, policy = self.items, self._policy
        dropped: list[Message] = []
        for message in batch:
            size = len(message.payload)
            if items and (len(items) >= policy.max_messages or self.queued_bytes + size > policy.max_bytes):
                dropped.append(message)
            else:
                items.append(message)
                self.queued_bytes += size
        self._drop(dropped, "drop_newest" if policy.when_full == "drop_newest" else "block_timeout")

    def _drop(self, messages: Iterable[Message], cause: str) -> None:
        n = 0
        for message in messages:
            n += 1
            if message._settlement is not None:  # a dropped record of a log counts as done
                message._settlement.settle(message)
        if n:
            self.dropped[cause] += n

    def shed(self) -> None:
        """The feed can wait no longer: drop the newest until the consumer has made room."""
        if self.full:
            self._shedding = True
            self._drop(self._held, "block_timeout")
            self._held.clear()

    def put_back(self, message: Message) -> None:
        """Queue a message again in front of all others, even at the bound; its arrival was counted before."""
        if self._closed:
            self.dropped["closed"] += 1
            return
        self.items.appendleft(message)
        self.queued_bytes += len(message.payload)
        self.peak = max(self.peak, len(self.items))
        if self._waiter is not None and len(self.items) >= self._wanted:
            self.wake()

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Take queued messages away again without settling them: they are delivered elsewhere."""
        kept = [message for message in self.items if not unwanted(message)]
        held = [message for message in self._held if not unwanted(message)]
        gone = len(self.items) + len(self._held) - len(kept) - len(held)
        if gone:
            self._held = deque(held)
            self.items.clear()
            self.items.extend(kept)
            self.queued_bytes = sum(len(message.payload) for message in kept)
            self.dropped[cause] += gone
            self.popped(0)

    def end(self) -> None:
        """Nothing more comes; what is queued is still handed out."""
        self.ended = self._finished = True
        self.wake()

    def fail(self, error: BusError) -> None:
        """``error`` follows what is queued."""
        if self._error is None and not self.ended:
            self._error = error
            self._finished = True
            self.wake()

    def close(self) -> int:
        """Hand out nothing more. Returns how many messages were still queued."""
        left = len(self.items) + len(self._held)
        if left:
            self.dropped["closed"] += left
        self._closed = self._finished = True
        self.items.clear()
        self._held.clear()
        self.queued_bytes = 0
        self.wake()
        return left

    # -- consumer side

    def popped(self, size: int) -> None:
        """The consumer has taken ``size`` bytes from the left of `items`."""
        self.queued_bytes -= size
        if self._held:
            self._take_held()
        elif self.full and len(self.items) <= self._low_messages and self.queued_bytes <= self._low_bytes:
            self.full = self._shedding = False
            self._on_room()

    def drop_taken(self, messages: Iterable[Message], cause: str) -> None:
        """The consumer has taken these and not handed them out."""
        self._drop(messages, cause)

    async def wait(self) -> bool:
        """Suspend until a message is queued or nothing more will come; returns whether a message is queued.

        Nothing is taken here, so cancelling loses nothing.

        Raises:
            ClosedError: the channel was closed.
            BusyError: another task is already waiting.
            BusError: the feed broke, and what it had delivered was taken.
        """
        while not self.items and not self._finished:
            if self._waiter is not None:
                raise BusyError(_BUSY)
            self._wanted = 1
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._closed:
            raise ClosedError("The subscription is closed.")
        if self.items:
            return True
        if self._error is not None:
            raise self._error
        return False

    async def wait_for_more(self, wanted: int, within: float) -> None:
        """Suspend until ``wanted`` messages or as many as fit are queued, ``within`` seconds have passed or nothing
        more will come."""
        if len(self.items) >= wanted or self.full or not self.room or self._finished or within <= 0:
            return
        if self._waiter is not None:
            raise BusyError(_BUSY)
        loop = asyncio.get_running_loop()
        self._wanted = wanted
        self._waiter = loop.create_future()
        timer = loop.call_later(within, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def wake(self) -> None:
        """Let the waiting consumer look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
