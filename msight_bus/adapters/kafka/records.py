"""Messages of Kafka's records, as aiokafka's C parser gives them. Pure."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from msight_bus.message import NO_HEADERS, Message, Settlement
from msight_bus.wire import envelope


def to_messages(topic: str, records: Iterator[Any], received_at: float, settlement: Settlement | None) -> list[Message]:
    """The messages of records, in their order.

    What the bus publishes without a key or headers is taken in columns, because a call or an object for each record costs as
    much as reading it; from the first record that is different on, each is taken by itself.
    """
    values: list[bytes] = []
    offsets: list[int] = []
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
                offsets.append(record.offset)
                metas.append(meta)
                continue
        other = (record,)
        break
    try:
        stamps = envelope.iter_meta(unhexlify(b"".join(metas)))
    except ValueError:  # one of them is no number
        messages = []
        for value, offset, meta in zip(values, offsets, metas, strict=True):
            session, seq, at = envelope.parse_header(meta) or (None, None, None)
            messages.append(
                Message(topic, value, NO_HEADERS, None, session, seq, at, received_at, offset, 0, settlement)
            )
    else:
        messages = [
            Message(topic, value, NO_HEADERS, None, session, seq, published * 1e-9, received_at, offset, 0, settlement)
            for value, offset, (session, seq, published) in zip(values, offsets, stamps, strict=True)
        ]
    if other:
        messages += [_to_message(topic, record, received_at, settlement) for record in chain(other, records)]
    return messages


def offset_of(message: Message) -> int:
    """The offset of a message that came from a log."""
    assert message.offset is not None
    return message.offset


def _to_message(topic: str, record: Any, received_at: float, settlement: Settlement | None) -> Message:
    """The message of any record; the bus's metadata is taken out of the headers."""
    headers: Mapping[str, str] = NO_HEADERS
    session = sequence = published_at = None
    user: dict[str, str] = {}
    for name, value in record.headers:
        if name == envelope.HEADER:
            meta = envelope.parse_header(value or b"")
            if meta is not None:
                session, sequence, published_at = meta
        else:
            user[name] = (value or b"").decode("utf-8", "replace")
    if user:
        headers = user
    key = record.key.decode("utf-8", "replace") if record.key is not None else None
    return Message(
        topic,
        record.value or b"",
        headers,
        key,
        session,
        sequence,
        published_at,
        received_at,
        record.offset,
        0,
        settlement,
    )
