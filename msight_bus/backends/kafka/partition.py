"""One partition that a subscription owns: what was delivered of it, what is done, and what is no message."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from aiokafka import TopicPartition

from msight_bus.backends.base import Inbox
from msight_bus.backends.kafka.partition_reader import PartitionReader
from msight_bus.backends.kafka.records import offset_of, to_messages
from msight_bus.backends.kafka.start import Moment
from msight_bus.message import Message
from msight_bus.offset_tracker import PartitionLedger

logger = logging.getLogger("msight_bus")

_LIST = 2000
"""Messages that are made without letting others run."""

_FETCHES_OF_DAMAGED = 3

_HELD_BACK_AFTER = 10.0
"""Seconds after which a transaction that stays open is logged."""

DeadLetter = Callable[[Message], Awaitable[bool]]


class Partition:
    """A partition between two rebalances (message.Settlement, partition_reader.MessageMaker).

    Attributes:
        where: topic and number.
        partition: the number.
        ledger: what was delivered and what is done; ``ledger.expected`` is the offset to fetch next.
        owned: whether it still belongs to the subscription.
        end: the offset behind the last record of the log, ``None`` before the first fetch.
        stable: where the records of an open transaction begin; ``end`` without one.
    """

    __slots__ = (
        "_arrives", "_damaged", "_dead_letter", "_held_back", "_inbox", "_latest", "_max_redeliveries", "_moment",
        "_reads_committed", "_stream", "_waits", "end", "ledger", "owned", "partition", "stable", "where",
    )  # fmt: skip

    def __init__(
        self,
        where: TopicPartition,
        start: int,
        inbox: Inbox,
        max_redeliveries: int,
        dead_letter: DeadLetter,
        *,
        moment: Moment | None = None,
        latest: int = 0,
        waits: bool = False,
        reads_committed: bool = True,
    ) -> None:
        """Begin at an offset.

        Args:
            moment: messages from before it are left out.
            latest: number of messages before the end from which a partition that comes, or comes back, is read; 0 for all.
            waits: whether no more messages are made than fit into the inbox.
            reads_committed: whether records of an open transaction are waited for.
        """
        self.where = where
        self.partition: int = where.partition
        self.ledger = PartitionLedger(start)
        self.owned = True
        self.end: int | None = None
        self.stable = 0
        self._arrives = bool(latest)
        self._stream = inbox.stream(where.topic)
        self._inbox = inbox
        self._max_redeliveries = max_redeliveries
        self._dead_letter = dead_letter
        self._moment = moment
        self._latest = latest
        self._waits = waits
        self._reads_committed = reads_committed
        self._damaged = (start, 0)  # the last place with damaged bytes, and how often it was fetched
        self._held_back = (-1, math.inf)  # where it stands still, and when to log it

    # -- reading a fetch

    def read(self, data: bytes | memoryview, aborted: Sequence[tuple[int, int]]) -> Iterator[list[Message]]:
        """The new messages of a fetch, which count as delivered when they are handed out."""
        if not self._reads_committed:
            aborted = ()
        for messages in PartitionReader(data, self.ledger.expected, aborted, self):
            wanted = self._skip(messages) if self._arrives else messages
            if not wanted:
                return  # the next fetch begins further on
            if new := self.deliver(wanted):
                yield new

    @property
    def limit(self) -> int:
        """Messages of the next list at most."""
        return max(1, min(_LIST, self._inbox.room)) if self._waits else _LIST

    def make(self, records: Iterator[Any], first: int | None) -> list[Message]:
        """The messages of records."""
        return to_messages(self.where.topic, records, time.time(), self, first)

    def passed(self, offset: int) -> None:
        """What was not handed out below ``offset`` is no message."""
        if self.owned:
            self.ledger.expected = max(self.ledger.expected, offset)

    def unreadable(self, count: int, reason: str, *, at_most: bool) -> None:
        """Report records that are passed over: they must not stop their partition."""
        logger.warning("%d records of %s, partition %d, are passed over: %s", count, *self.where, reason)
        self._stream.gap(count, "unreadable", at_most=at_most)

    def fetch_again(self, offset: int) -> bool:
        """Whether damaged bytes are worth another fetch."""
        fetches = self._damaged[1] + 1 if self._damaged[0] == offset else 1
        self._damaged = (offset, fetches)
        return fetches < _FETCHES_OF_DAMAGED

    def came_back(self) -> None:
        """A broker did not answer for a while: a consumer of the latest messages skips what lies further back."""
        self._arrives = bool(self._latest)

    def _skip(self, messages: list[Message]) -> list[Message]:
        """Go on ``latest`` records before the end of a partition that comes, or comes back, with more."""
        self._arrives = False
        first = self._readable_end - self._latest
        if first <= self.ledger.expected:
            return messages
        self._inbox.skip(first - self.ledger.expected)
        self.ledger.skip_to(first)
        return [message for message in messages if offset_of(message) >= first]

    @property
    def _readable_end(self) -> int:
        return self.stable if self._reads_committed else self.end or 0

    def deliver(self, messages: list[Message]) -> list[Message]:
        """Note messages, in ascending order, as delivered; returns those that are new: a fetch begins with whole batches."""
        ledger = self.ledger
        if offset_of(messages[0]) < ledger.expected:
            messages = [message for message in messages if offset_of(message) >= ledger.expected]
        end = offset_of(messages[-1]) + 1 if messages else 0
        if (moment := self._moment) is not None:  # what it leaves out counts as done
            messages = [message for message in messages if not moment.leaves_out(message)]
        if messages and offset_of(messages[-1]) - offset_of(messages[0]) == len(messages) - 1:
            ledger.deliver(offset_of(messages[0]), offset_of(messages[-1]) + 1)
        else:  # with holes
            for offset in map(offset_of, messages):
                ledger.deliver(offset, offset + 1)
        if end:
            ledger.expected = max(ledger.expected, end)
        return messages

    # -- retention and transactions

    def deleted_before(self, oldest: int) -> bool:
        """Go on with the oldest record that is left; returns whether records before it were missing."""
        ledger = self.ledger
        if oldest <= ledger.expected:
            return False
        self._stream.gap(oldest - ledger.expected, "retention", at_most=True)
        ledger.expected = oldest
        return True

    def truncated(self, oldest: int) -> None:
        """Begin again with the oldest record: the log ends before what was read of it, and what is missing is not known."""
        self._stream.gap(None, "retention")
        self.ledger = PartitionLedger(oldest)

    def warn_if_held_back(self, now: float) -> None:
        """Log once that an open transaction holds the partition back; ``now`` is the loop's time."""
        end, stable = self.end or 0, self.stable
        if not stable <= self.ledger.expected < end or not self._reads_committed:
            stable = -1
        if self._held_back[0] != stable:
            self._held_back = (stable, math.inf if stable < 0 else now + _HELD_BACK_AFTER)
        elif now >= self._held_back[1]:
            self._held_back = (stable, math.inf)
            logger.warning(
                "%s, partition %d: a transaction that is open for %g s holds back %d records behind offset %d. Commit or "
                "abort it at its producer; MSIGHT_KAFKA_ISOLATION=read_uncommitted does not wait for it.",
                *self.where,
                _HELD_BACK_AFTER,
                end - stable,
                stable,
            )

    # -- acknowledgements

    def settle(self, message: Message) -> None:
        """Mark a record as done; late ones, of partitions that were taken away, are ignored."""
        if self.owned and not message._settled:
            message._settled = True
            assert message.offset is not None
            self.ledger.settle(message.offset)

    async def release(self, message: Message) -> None:
        """Deliver a record again, or dead-letter it when it has come back too often."""
        if not self.owned or message._settled:
            return
        if message.redeliveries < self._max_redeliveries:
            message.redeliveries += 1
            self._inbox.put_back(message)
            return
        if await self._dead_letter(message):
            self.settle(message)
        else:
            self._inbox.drop(message, "no dead letter")
