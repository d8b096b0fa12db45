"""Converts the records of aiokafka's C parser to messages. Pure."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

from msight_bus.backends.kafka.batch_parsing import Record
from msight_bus.message import NO_HEADERS, Headers, Message, Settlement, overhead
from msight_bus.protocol import envelope

RawHeaders = Sequence[tuple[str, bytes | None]]
"""The headers of a record, in the order of the log."""

_sequence = attrgetter("sequence")

_EARLIEST_MS = 946_684_800_000
"""The year 2000: an earlier timestamp is not used as the time of publishing."""

_AHEAD_S = 86_400.0
"""Seconds: a timestamp further in the future is not used either."""


class RecordHeaders(Headers):
    """The headers of a record without the bus's own, as text; if a name is repeated, the last value counts.

    Attributes:
        raw: all headers, unchanged and in order.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: RawHeaders) -> None:
        super().__init__({name: to_text(value or b"") for name, value in raw})
        self.raw = raw


def to_text(value: bytes) -> str:
    """Decode a key or header value. Bytes that are not UTF-8 become lone surrogates (PEP 383), which `to_bytes` reverses."""
    return value.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Encode a key or header value for a record."""
    return text.encode("utf-8", "surrogateescape")


def raw_headers(message: Message) -> RawHeaders:
    """Return the headers of a message without the bus's own, unchanged."""
    if isinstance(message.headers, RecordHeaders):
        return message.headers.raw
    return [(name, to_bytes(value)) for name, value in message.headers.items()]


def to_messages(
    topic: str, records: Iterator[Any], received_at: float, settlement: Settlement | None, first: int | None = None
) -> list[Message]:
    """Convert records to messages, in order.

    Records that the bus published without a key or headers are converted in columns, because a call or an object for each record
    costs as much as parsing it. From the first other record on, records are converted one by one.

    Args:
        topic: the topic of the records.
        records: as aiokafka's parser or `read_records` yields them.
        received_at: POSIX seconds.
        settlement: receives the acknowledgements of the messages; ``None``: acknowledging has no effect.
        first: offset of the first record if offsets have no holes; ``None`` to use each record's own offset.
    """
    values: list[bytes] = []
    offsets: list[int] = []
    timestamps: list[int] = []
    metas: list[bytes] = []
    other: tuple[Any, ...] = ()
    for record in records:
        headers = record.headers
        if len(headers) == 1 and record.key is None:
            name, meta = headers[0]
            value = record.value
            if (
                name == envelope.HEADER
                and meta is not None
                and len(meta) == envelope.HEADER_DIGITS
                and value is not None
            ):
                values.append(value)
                metas.append(meta)
                timestamps.append(record.timestamp)
                if first is None:
                    offsets.append(record.offset)
                continue
        other = (record,)
        break
    places: Sequence[int] = offsets if first is None else range(first, first + len(values))

    def one_by_one() -> list[Message]:
        columns = zip(places, timestamps, values, metas, strict=True)
        ours = [Record(at, stamp, None, value, [(envelope.HEADER, meta)]) for at, stamp, value, meta in columns]
        return _each(topic, chain(ours, other, records), received_at, settlement, first)

    try:
        stamps = envelope.iter_meta(unhexlify(b"".join(metas)))
    except ValueError:  # a header is not hexadecimal
        return one_by_one()
    messages = [
        Message(topic, value, NO_HEADERS, None, session, seq, published * 1e-9, received_at, offset, 0, settlement)
        for value, offset, (session, seq, published) in zip(values, places, stamps, strict=True)
    ]
    if 0 in map(_sequence, messages):  # sequences begin at 1: another program wrote this header
        return one_by_one()
    if other:
        first = None if first is None else first + len(values)
        messages += _each(topic, chain(other, records), received_at, settlement, first)
    return messages


def offset_of(message: Message) -> int:
    """Return the offset of a message from Kafka."""
    assert message.offset is not None
    return message.offset


def _each(
    topic: str, records: Iterator[Any], received_at: float, settlement: Settlement | None, first: int | None
) -> list[Message]:
    if first is None:
        return [_to_message(topic, record, record.offset, received_at, settlement) for record in records]
    return [_to_message(topic, record, at, received_at, settlement) for at, record in enumerate(records, first)]


def _to_message(topic: str, record: Any, offset: int, received_at: float, settlement: Settlement | None) -> Message:
    """Convert one record; the bus's header becomes session, sequence and time of publishing."""
    meta = None
    user: list[tuple[str, bytes | None]] = []
    for name, value in record.headers:
        if name == envelope.HEADER:
            meta = envelope.parse_header(value or b"") or meta
        else:
            user.append((name, value))
    session, sequence, published_at = meta or (None, None, _moment(record.timestamp, received_at))
    headers = RecordHeaders(user) if user else NO_HEADERS
    key = to_text(record.key) if record.key is not None else None
    return Message(
        topic,
        record.value or b"",
        headers,
        key,
        session,
        sequence,
        published_at,
        received_at,
        offset,
        0,
        settlement,
        tombstone=record.value is None,
        _overhead=overhead(headers, key),
    )


def _moment(timestamp: int | None, now: float) -> float | None:
    """Return a record's timestamp in POSIX seconds; ``None`` for none, one before 2000, or one more than a day after ``now``."""
    if timestamp is None or timestamp < _EARLIEST_MS:
        return None
    at = timestamp / 1000
    return at if at <= now + _AHEAD_S else None
