"""One assigned partition: position, delivered and acknowledged offsets, and skipped records."""

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
from msight_bus.backends.kafka.start_offsets import Moment
from msight_bus.errors import counted
from msight_bus.message import Message
from msight_bus.offset_tracker import PartitionLedger

logger = logging.getLogger("msight_bus")

_LIST = 2000
"""Maximum number of messages that are created without yielding to the event loop."""

_FETCHES_OF_DAMAGED = 3
"""Number of fetches of damaged bytes before they are skipped."""

_BLOCKED_AFTER = 10.0
"""Seconds after which an open transaction is logged."""

DeadLetter = Callable[[Message], Awaitable[bool]]
"""Publishes a message as a dead letter and returns whether that succeeded."""


class Partition:
    """A partition from its assignment to the next rebalance (message.Settlement, partition_reader.MessageMaker).

    Attributes:
        where: topic and partition.
        partition: the partition's number.
        ledger: delivered and acknowledged offsets; ``ledger.expected`` is the offset of the next fetch.
        owned: whether the partition is still assigned to the subscription.
        exists: false once the topic is known to be deleted; the partition is then not fetched.
        end: offset after the last record of the log; ``None`` before the first fetch.
        epoch: leader epoch of the last batch that was read; -1 before the first, and after the position has jumped.
        stable: last stable offset: that of the first record of an open transaction; ``end`` if none is open.
    """

    __slots__ = (
        "_blocked",
        "_damaged",
        "_dead_letter",
        "_inbox",
        "_latest",
        "_max_redeliveries",
        "_may_skip",
        "_moment",
        "_reads_committed",
        "_waits",
        "end",
        "epoch",
        "exists",
        "ledger",
        "owned",
        "partition",
        "stable",
        "where",
    )  # fmt: skip

    def __init__(
        self,
        where: TopicPartition,
        start: int,
        inbox: Inbox,
        max_redeliveries: int,
        dead_letter: DeadLetter,
        *,
        moment: Moment | None,
        latest: int,
        waits: bool,
        reads_committed: bool,
    ) -> None:
        """
        Args:
            where: topic and partition.
            start: first offset to fetch.
            inbox: receives messages and gaps.
            max_redeliveries: number of redeliveries after which a message is dead-lettered.
            dead_letter: publishes a dead letter.
            moment: messages published before it are left out.
            latest: on assignment and after an outage, continue at most this many records before the end; 0: read all records.
            waits: whether a list has at most as many messages as the inbox has room for.
            reads_committed: whether records are delivered only once their transaction is committed.
        """
        self.where = where
        self.partition: int = where.partition
        self.ledger = PartitionLedger(start)
        self.owned = True
        self.exists = True
        self.end: int | None = None
        self.epoch = -1
        self.stable = 0
        self._may_skip = bool(latest)
        self._inbox = inbox
        self._max_redeliveries = max_redeliveries
        self._dead_letter = dead_letter
        self._moment = moment
        self._latest = latest
        self._waits = waits
        self._reads_committed = reads_committed
        self._damaged = (start, 0)  # offset of damaged bytes, number of its fetches
        self._blocked = (-1, math.inf)  # offset of an open transaction, when to log it

    # -- reading a fetch

    def read(self, data: bytes | memoryview, aborted: Sequence[tuple[int, int]]) -> Iterator[list[Message]]:
        """Yield the new messages of a fetch in lists; a list counts as delivered when it is yielded.

        Args:
            data: record batches.
            aborted: producer id and first offset of each aborted transaction.

        Raises:
            CorruptRecordException: the batches are damaged and to be fetched again.
        """
        if not self._reads_committed:
            aborted = ()
        for messages in PartitionReader(data, self.ledger.expected, aborted, self):
            wanted = self._skip(messages) if self._may_skip else messages
            if not wanted:
                return  # continue with a fetch from the new position
            if new := self.deliver(wanted):
                yield new

    @property
    def limit(self) -> int:
        """Maximum number of messages in the next list."""
        return max(1, min(_LIST, self._inbox.room)) if self._waits else _LIST

    def make(self, records: Iterator[Any], first: int | None) -> list[Message]:
        """Convert records to messages (partition_reader.MessageMaker)."""
        return to_messages(self._inbox.topic_of(self.where.topic), records, time.time(), self, first)

    def passed(self, offset: int) -> None:
        """Move the position to ``offset``: no message below it is left."""
        if self.owned:
            self.ledger.expected = max(self.ledger.expected, offset)

    def unreadable(self, count: int, reason: str, *, at_most: bool) -> None:
        """Report skipped records as a gap."""
        logger.warning("Skipped %s of %s, partition %d: %s", counted(count, "record"), *self.where, reason)
        self._inbox.stream(self.where.topic).gap(count, "unreadable", at_most=at_most)

    def fetch_again(self, offset: int) -> bool:
        """Return whether to fetch damaged bytes at ``offset`` again; true for the first two fetches."""
        fetches = self._damaged[1] + 1 if self._damaged[0] == offset else 1
        self._damaged = (offset, fetches)
        return fetches < _FETCHES_OF_DAMAGED

    def note_outage(self) -> None:
        """Note an outage of the broker: a subscription to the latest messages skips older ones."""
        self._may_skip = bool(self._latest)

    def _skip(self, messages: list[Message]) -> list[Message]:
        """Continue ``latest`` records before the end; return the messages that are left."""
        self._may_skip = False
        first = self._readable_end - self._latest
        if first <= self.ledger.expected:
            return messages
        self._inbox.skip(self.where.topic, first - self.ledger.expected)
        self.ledger.skip_to(first)
        self.epoch = -1  # of records far below the new position
        return [message for message in messages if offset_of(message) >= first]

    @property
    def _readable_end(self) -> int:
        return self.stable if self._reads_committed else self.end or 0

    def deliver(self, messages: list[Message]) -> list[Message]:
        """Mark messages, in ascending order, as delivered and return the new ones: a fetch can begin before the position."""
        ledger = self.ledger
        if offset_of(messages[0]) < ledger.expected:
            messages = [message for message in messages if offset_of(message) >= ledger.expected]
        end = offset_of(messages[-1]) + 1 if messages else 0
        if (moment := self._moment) is not None:  # messages before it count as finished
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
        """Continue at the oldest record of the log and report a gap; return whether the position was before it."""
        ledger = self.ledger
        if oldest <= ledger.expected:
            return False
        self._inbox.stream(self.where.topic).gap(oldest - ledger.expected, "retention", at_most=True)
        ledger.expected = oldest
        self.epoch = -1
        return True

    def warn_if_blocked(self, now: float) -> None:
        """Log a WARNING, once, if an open transaction blocks the partition; ``now`` is the loop's time."""
        end, stable = self.end or 0, self.stable
        if not stable <= self.ledger.expected < end or not self._reads_committed:
            stable = -1
        if self._blocked[0] != stable:
            self._blocked = (stable, math.inf if stable < 0 else now + _BLOCKED_AFTER)
        elif now >= self._blocked[1]:
            self._blocked = (stable, math.inf)
            logger.warning(
                "%s, partition %d: a transaction open for %g s blocks %d records from offset %d on. Commit or abort the "
                "transaction at its producer, or set MSIGHT_KAFKA_ISOLATION=read_uncommitted.",
                *self.where,
                _BLOCKED_AFTER,
                end - stable,
                stable,
            )

    # -- acknowledgements

    def settle(self, message: Message) -> None:
        """Mark a record as finished; does nothing if the partition was revoked."""
        if self.owned and not message._settled:
            message._settled = True
            assert message.offset is not None
            self.ledger.settle(message.offset)

    async def release(self, message: Message) -> None:
        """Redeliver a record; after ``max_redeliveries``, dead-letter it."""
        if not self.owned or message._settled:
            return
        if message.redeliveries < self._max_redeliveries:
            message.redeliveries += 1
            self._inbox.requeue(message)
            return
        if await self._dead_letter(message):
            self.settle(message)
        else:
            self._inbox.drop(message, "no dead letter")
