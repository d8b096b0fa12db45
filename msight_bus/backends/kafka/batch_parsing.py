"""Record batches: framing, aborted transactions and a tolerant record parser. Pure.

aiokafka's C parser handles nearly all batches. It refuses records that Kafka's Java clients accept (a header name that is not
UTF-8, a null header name in a compressed batch, attributes above 127) and uses the offsets that a producer wrote into its
records, which brokers do not check in uncompressed batches. `read_records` parses such a batch again.

The format: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

_FRAME = Struct(">qi")  # base offset, length of the rest
_HEAD = Struct(">qiibIhiqqqhii")
_EPOCH_AT, _MAGIC_AT = 12, 16
HEAD_BYTES = _HEAD.size
_OLD_BYTES = 14  # size of an empty message of format 0: checksum, magic, attributes, lengths of key and value

_CODEC = 0x07
_LOG_APPEND_TIME = 0x08
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_MAX_VARINT_BYTES = 10


class FramingError(ValueError):
    """A batch length is invalid, so the start of the next batch is unknown."""


class Head(NamedTuple):
    """The head of a batch of format 2 (Kafka 0.11 and newer)."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def next_offset(self) -> int:
        """The offset after the batch."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def codec(self) -> int:
        """Compression codec of the records; 0 without compression."""
        return self.attributes & _CODEC

    @property
    def is_transactional(self) -> bool:
        """Whether the batch belongs to a transaction."""
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        """Whether the batch holds a transaction marker instead of records."""
        return bool(self.attributes & _CONTROL)

    @property
    def is_dense(self) -> bool:
        """Whether the batch has a record for each offset, so that the position of a record gives its offset."""
        return self.record_count == self.last_offset_delta + 1

    def uncompressed(self) -> bytes:
        """Return the head for the same batch with uncompressed records; length and checksum are unchanged."""
        return _HEAD.pack(*self[:5], self.attributes & ~_CODEC, *self[6:])


class Record(NamedTuple):
    """A record, with those attributes of aiokafka's records that messages need."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A number of consecutive records that cannot be parsed."""

    count: int
    reason: str


def split(data: bytes | memoryview) -> Iterator[memoryview]:
    """Yield the batches of a fetch, without an incomplete last batch, which the next fetch returns completely.

    Raises:
        FramingError: a batch length is invalid.
    """
    view = memoryview(data)
    at = 0
    while len(data) - at > _MAGIC_AT:
        _, length = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if length < (HEAD_BYTES - _FRAME.size if data[at + _MAGIC_AT] >= 2 else _OLD_BYTES):
            raise FramingError(f"a batch of {length} bytes is too short")
        if end > len(data):
            return
        yield view[at:end]
        at = end


def read_head(batch: memoryview) -> Head | None:
    """Return the head of a batch; ``None`` for the formats 0 and 1."""
    return Head(*_HEAD.unpack_from(batch)) if batch[_MAGIC_AT] >= 2 else None


def first_epoch(data: bytes | memoryview) -> int:
    """Return the leader epoch of the first batch of a fetch; -1 if it has none."""
    if len(data) <= _MAGIC_AT or data[_MAGIC_AT] < 2:
        return -1
    return int.from_bytes(data[_EPOCH_AT:_MAGIC_AT], "big", signed=True)


def base_offset(batch: memoryview) -> int:
    """Return the base offset of a batch: the offset of its first record; in the formats 0 and 1, of its last record."""
    return int(_FRAME.unpack_from(batch)[0])


def magic(batch: memoryview) -> int:
    """Return the format version of a batch."""
    return batch[_MAGIC_AT]


class AbortedTransactions:
    """The aborted transactions of a fetch (KIP-98), to identify the batches that belong to them.

    Args:
        aborted: producer id and first offset of each aborted transaction, from the fetch response.
    """

    def __init__(self, aborted: Iterable[tuple[int, int]]) -> None:
        self._aborted = sorted(aborted, key=lambda each: each[1], reverse=True)
        self._open: set[int] = set()

    def has(self, head: Head, records: memoryview) -> bool:
        """Return whether a batch belongs to an aborted transaction; call in the order of offsets."""
        while self._aborted and self._aborted[-1][1] <= head.base_offset:
            self._open.add(self._aborted.pop()[0])
        if head.is_control:
            if _is_abort_marker(records, head):
                self._open.discard(head.producer_id)
            return False
        return head.is_transactional and head.producer_id in self._open


def _is_abort_marker(records: memoryview, head: Head) -> bool:
    for record in read_records(records, head):
        # The key is a version and a type, 0 for an abort and 1 for a commit, of 16 bits each.
        return isinstance(record, Record) and record.key is not None and record.key[2:4] == b"\0\0"
    return False


def read_records(data: bytes | memoryview, head: Head, skip: int = 0) -> Iterator[Record | Unreadable]:
    """Yield the records of a batch, as tolerantly as Kafka's Java clients parse them.

    Text that is not UTF-8 is decoded with surrogateescape. A record that cannot be parsed is skipped by its length; if its length
    is invalid, the rest of the batch is skipped.

    Args:
        data: the records, decompressed.
        head: the head of the batch.
        skip: number of records at the start to leave out.
    """
    at, last = 0, head.base_offset - 1
    for index in range(head.record_count):
        try:
            length, start = _varint(data, at)
        except ValueError:
            length = -1
            start = at
        if not 0 <= length <= len(data) - start:
            if head.record_count > max(index, skip):
                yield Unreadable(head.record_count - max(index, skip), "a record has an invalid length")
            return
        at = start + length
        try:
            record = _read(data[start:at], head)
        except ValueError as error:
            if index >= skip:
                yield Unreadable(1, str(error))
            continue
        if head.is_dense:
            record = record._replace(offset=head.base_offset + index)
        elif not last < record.offset < head.next_offset:
            if index >= skip:
                yield Unreadable(1, f"offset {record.offset} is outside its batch")
            continue
        last = record.offset
        if index >= skip:
            yield record


def _read(data: bytes | memoryview, head: Head) -> Record:
    if not data:
        raise ValueError("a record is empty")
    timestamp_delta, at = _varint(data, 1)  # after the attributes, which are unused
    offset_delta, at = _varint(data, at)
    key, at = _bytes(data, at)
    value, at = _bytes(data, at)
    count, at = _varint(data, at)
    headers: list[tuple[str, bytes | None]] = []
    if not 0 <= count <= len(data) - at:
        raise ValueError(f"a record announces an impossible number of headers: {count}")
    for _ in range(count):
        name, at = _bytes(data, at)
        content, at = _bytes(data, at)
        headers.append(((name or b"").decode("utf-8", "surrogateescape"), content))
    timestamp = head.max_timestamp if head.attributes & _LOG_APPEND_TIME else head.first_timestamp + timestamp_delta
    return Record(head.base_offset + offset_delta, timestamp, key, value, headers)


def _bytes(data: bytes | memoryview, at: int) -> tuple[bytes | None, int]:
    size, at = _varint(data, at)
    if size < 0:
        return None, at
    if size > len(data) - at:
        raise ValueError(f"a field announces {size} bytes, and {len(data) - at} are left")
    return bytes(data[at : at + size]), at + size


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return a zigzag-encoded number and the position after it."""
    value = shift = 0
    for position in range(at, min(len(data), at + _MAX_VARINT_BYTES)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position + 1
        shift += 7
    raise ValueError("a varint has no last byte")
