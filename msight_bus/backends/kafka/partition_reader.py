"""Converts the fetched batches of one partition to lists of messages. A damaged record never stops the partition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

from aiokafka.errors import CorruptRecordException

from msight_bus.backends.kafka.aiokafka_compat import DefaultRecordBatch, LegacyRecordBatch, has_valid_checksum
from msight_bus.backends.kafka.batch_parsing import (
    HEAD_BYTES,
    AbortedTransactions,
    FramingError,
    Head,
    Record,
    base_offset,
    magic,
    read_head,
    read_records,
    split,
)
from msight_bus.backends.kafka.decompressing import UnreadableBatchError, decompress
from msight_bus.backends.kafka.records import offset_of
from msight_bus.message import Message


class MessageMaker(Protocol):
    """Converts the records of one partition to messages, and is notified of skipped offsets.

    Attributes:
        epoch: leader epoch of the last batch that was read; -1 before the first.
    """

    epoch: int

    @property
    def limit(self) -> int:
        """Maximum number of records in the next list."""

    def make(self, records: Iterator[Any], first: int | None) -> list[Message]:
        """Return one message for each record; arguments as in `records.to_messages`."""

    def passed(self, offset: int) -> None:
        """Note that no message below ``offset`` is left: offsets without one are transaction markers or were compacted."""

    def unreadable(self, count: int, reason: str, *, at_most: bool) -> None:
        """Note that up to (``at_most``) or exactly ``count`` records are skipped, because of ``reason``."""

    def fetch_again(self, offset: int) -> bool:
        """Return whether to fetch damaged bytes at ``offset`` again: they may be damaged only in this response."""


class PartitionReader:
    """Iterates lists of messages from fetched batches, from an offset on.

    Replaces aiokafka's reader, which creates a ``ConsumerRecord`` for each record, more than half of the cost of a fetch.

    Attributes:
        next_fetch_offset: offset for the next fetch, after the lists so far.
    """

    def __init__(
        self, data: bytes | memoryview, position: int, aborted: Iterable[tuple[int, int]], maker: MessageMaker
    ) -> None:
        self.next_fetch_offset = position
        self._maker = maker
        self._aborted = AbortedTransactions(aborted)
        self._lists = self._read(data)

    def __iter__(self) -> Iterator[list[Message]]:
        return self._lists

    def _read(self, data: bytes | memoryview) -> Iterator[list[Message]]:
        batches = split(data)
        while True:
            try:
                batch = next(batches, None)
            except FramingError as error:
                self._damaged(1, self.next_fetch_offset + 1, str(error))
                return
            if batch is None:
                return
            head = read_head(batch)
            if head is None:
                yield from self._read_old(batch)
            elif head.next_offset > self.next_fetch_offset:
                self._maker.epoch = head.leader_epoch
                yield from self._read_batch(head, batch)

    def _read_batch(self, head: Head, batch: memoryview) -> Iterator[list[Message]]:
        # A fetch returns complete batches, so records before the requested offset are possible.
        missing = head.next_offset - max(head.base_offset, self.next_fetch_offset)
        if not has_valid_checksum(batch):
            self._damaged(missing, head.next_offset, "wrong checksum")
            return
        records: bytes | memoryview = batch[HEAD_BYTES:]
        if not self._aborted.has(head, batch[HEAD_BYTES:]) and not head.is_control:
            try:
                if head.codec:
                    records = decompress(head.codec, bytes(records))
            except UnreadableBatchError as error:
                self._maker.unreadable(missing, str(error), at_most=not head.is_dense)
            else:
                yield from self._read_records(head, batch, records)
        self._pass(head.next_offset)

    def _read_records(self, head: Head, batch: memoryview, records: bytes | memoryview) -> Iterator[list[Message]]:
        # chain() gives one iterator: a batch can be iterated only once
        parsed = chain(DefaultRecordBatch(head.uncompressed() + records if head.codec else batch))
        taken, end = 0, head.base_offset
        while True:
            limit = self._maker.limit
            try:
                messages = self._maker.make(islice(parsed, limit), head.base_offset + taken if head.is_dense else None)
                if not head.is_dense:
                    _check_offsets(messages, end, head.next_offset)
            except Exception:  # parsers raise anything for invalid bytes
                yield from self._read_tolerantly(head, records, taken)
                return
            if messages:
                taken += len(messages)
                end = offset_of(messages[-1]) + 1
                self._pass_to(end)
                yield messages
            if len(messages) < limit:
                return

    def _read_tolerantly(self, head: Head, records: bytes | memoryview, taken: int) -> Iterator[list[Message]]:
        if head.is_dense:
            taken = max(taken, self.next_fetch_offset - head.base_offset)
        readable: list[Record] = []
        limit = self._maker.limit
        for record in chain(read_records(records, head, taken), (None,)):
            if isinstance(record, Record):
                readable.append(record)
            if readable and (len(readable) == limit or not isinstance(record, Record)):
                self._pass_to(readable[-1].offset + 1)
                yield self._maker.make(iter(readable), None)
                readable = []
                limit = self._maker.limit
            if record is not None and not isinstance(record, Record):
                self._maker.unreadable(record.count, record.reason, at_most=not head.is_dense)

    def _read_old(self, batch: memoryview) -> Iterator[list[Message]]:
        """Read a batch of format 0 or 1, which Kafka 4 no longer has; the base offset is that of the last record."""
        end = base_offset(batch) + 1
        try:
            parsed = LegacyRecordBatch(batch, magic(batch))
            messages = self._maker.make(iter(parsed), None) if parsed.validate_crc() else None
        except Exception:  # parsers raise anything for invalid bytes
            messages = None
        if messages is None:
            self._damaged(max(1, end - self.next_fetch_offset), end, "damaged")
            return
        if messages:
            self._pass_to(end)
            yield messages
        self._pass(end)

    def _damaged(self, missing: int, end: int, reason: str) -> None:
        """Skip damaged bytes, unless they are to be fetched again.

        Raises:
            CorruptRecordException: the bytes are to be fetched again.
        """
        if self._maker.fetch_again(self.next_fetch_offset):
            raise CorruptRecordException(f"offset {self.next_fetch_offset}: {reason}")
        self._maker.unreadable(missing, reason, at_most=True)
        self._pass(end)

    def _pass(self, offset: int) -> None:
        self._pass_to(offset)
        self._maker.passed(self.next_fetch_offset)

    def _pass_to(self, offset: int) -> None:
        self.next_fetch_offset = max(self.next_fetch_offset, offset)


def _check_offsets(messages: list[Message], first: int, end: int) -> None:
    """Check the offsets of records, which brokers do not check in uncompressed batches.

    Raises:
        ValueError: the offsets do not ascend from ``first`` to below ``end``.
    """
    before = first - 1
    for message in messages:
        if not before < offset_of(message) < end:
            raise ValueError(f"offset {message.offset} is outside its batch")
        before = offset_of(message)
