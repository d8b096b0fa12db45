"""The envelope of a message: session, sequence and publish time.

On NATS and Kafka, the envelope is one native header, ``msight``, of 48 hexadecimal digits: session, sequence and publish
time in nanoseconds since 1970, 16 digits each. Redis has no headers, so the envelope is a prefix of the payload, of 32 bytes::

    0xC1 'M' 'B' version:u8  extension:u32  session:u64  sequence:u64  published_at:u64     (big-endian)

followed by ``extension`` bytes of MessagePack: ``[key or nil, {header: value}]``, absent when there is neither. 0xC1 is the one
byte that MessagePack never uses ("never used" in its specification), so no MSight payload begins with 0xC1. A payload without a
valid prefix is a raw payload. Sequences begin at 1: a header or prefix with sequence 0 is not valid.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Mapping

import msgspec

HEADER = "msight"
"""Name of the native header that carries the metadata."""

_PREFIX = struct.Struct(">4sIQQQ")
PREFIX_BYTES = _PREFIX.size
unpack_meta = struct.Struct(">QQQ").unpack
"""Session, sequence, publish time in nanoseconds, from 24 bytes."""

pack_meta = struct.Struct(">QQQ").pack
"""Encode session, sequence and publish time as 24 bytes; `binascii.hexlify` of them is the native header's value."""

iter_meta = struct.Struct(">QQQ").iter_unpack
"""Session, sequence, publish time in nanoseconds, of each 24 bytes."""

HEADER_DIGITS = 48
"""Length of the native header's value."""

pack_prefix = _PREFIX.pack
"""Magic, extension length, session, sequence, publish time in nanoseconds: as bytes."""

MAX_EXTENSION_BYTES = 1024 * 1024
"""Maximum bytes of key and headers after the prefix; decoded, small headers take up to fifty times as much memory."""

MAGIC = b"\xc1MB\x01"
_FIRST = 0xC1
_Extension = tuple[str | None, dict[str, str]]
_encode_extension = msgspec.msgpack.Encoder().encode
_decode_extension = msgspec.msgpack.Decoder(_Extension).decode

Meta = tuple[int, int, float]
"""Session, sequence, publish time in POSIX seconds."""


class TopicCounter:
    """The sequence counter of a topic that is published on, and the cached start of its publish command.

    Attributes:
        topic: the topic's name.
        name: the topic's name in bytes.
        session: the publisher's random id, not 0.
        sequence: sequence of the last message; 0 before the first.
        head: the start of the last command, which is the same for all messages of equal size.
        head_for: the sizes for which ``head`` is valid.
        measured: sequence at the last measurement of the topic's rate.
    """

    __slots__ = ("head", "head_for", "measured", "name", "sequence", "session", "topic")

    def __init__(self, topic: str, session: int, sequence: int = 0) -> None:
        self.topic = topic
        self.name = topic.encode()
        self.session = session
        self.sequence = sequence
        self.measured = 0
        self.head = b""
        self.head_for: object = None


def unpack_header(value: bytes | str) -> tuple[int, int, int] | None:
    """Decode the native header's value: session, sequence, publish time in nanoseconds; ``None`` if the value is not valid."""
    if len(value) != HEADER_DIGITS:
        return None
    try:
        meta = unpack_meta(unhexlify(value))
    except ValueError:
        return None
    return meta if meta[1] else None


def parse_header(value: bytes | str) -> Meta | None:
    """Decode the native header's value as `unpack_header` does, with the publish time in POSIX seconds."""
    meta = unpack_header(value)
    return None if meta is None else (meta[0], meta[1], meta[2] * 1e-9)


def prefix(session: int, sequence: int, published_ns: int, extension: bytes) -> bytes:
    """Encode the prefix for Redis, which the payload follows."""
    return _PREFIX.pack(MAGIC, len(extension), session, sequence, published_ns) + extension


def pack_extension(key: str | None, headers: Mapping[str, str] | None) -> bytes:
    """Encode key and headers; empty if there is neither."""
    return _encode_extension((key, dict(headers or {}))) if key is not None or headers else b""


def prefix_length(data: bytes, start: int, size: int) -> int:
    """Return the bytes of the prefix, extension included, of the ``size`` bytes at ``start``; 0 for a raw payload."""
    if size < PREFIX_BYTES or data[start] != _FIRST:
        return 0
    magic, extension, _, sequence, _ = _PREFIX.unpack_from(data, start)
    return PREFIX_BYTES + extension if magic == MAGIC and sequence and PREFIX_BYTES + extension <= size else 0


def unpack_extension(data: bytes) -> tuple[str | None, Mapping[str, str]]:
    """Decode key and headers.

    Raises:
        ValueError: ``data`` is not an extension, or exceeds `MAX_EXTENSION_BYTES`.
    """
    if len(data) > MAX_EXTENSION_BYTES:
        raise ValueError(f"extension exceeds {MAX_EXTENSION_BYTES} bytes")
    try:
        key, headers = _decode_extension(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError("invalid extension") from error
    return key, headers
