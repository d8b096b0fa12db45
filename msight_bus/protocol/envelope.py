"""Session, sequence and publish time of a message, as they travel.

On NATS and Kafka they ride in one native header, ``msight``, as 48 hexadecimal digits: session, sequence and publish
time in nanoseconds since 1970, 16 digits each. Redis has no headers, so there a prefix of 32 bytes carries them::

    0xC1 'M' 'B' version:u8  extension:u32  session:u64  sequence:u64  published_at:u64     (big-endian)

followed by ``extension`` bytes of MessagePack: ``[key or nil, {header: value}]``, absent when there is neither. 0xC1 is the
one byte that MessagePack never uses (its specification calls it "never used"), so no MSight payload begins with it; what does
not pass the check is a raw payload. Sequences begin at 1: where one is 0, the header or prefix is none of ours either.
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
"""The 24 bytes; `binascii.hexlify` makes the native header's value of them."""

iter_meta = struct.Struct(">QQQ").iter_unpack
"""The same of each 24 bytes."""

HEADER_DIGITS = 48
"""Length of the native header's value."""

pack_prefix = _PREFIX.pack
"""Magic, extension length, session, sequence, publish time in nanoseconds: as bytes."""

MAX_EXTENSION_BYTES = 1024 * 1024
"""Of key and headers behind the prefix: decoded, small headers take fifty times as much."""

MAGIC = b"\xc1MB\x01"
_FIRST = 0xC1
_Extension = tuple[str | None, dict[str, str]]
_encode_extension = msgspec.msgpack.Encoder().encode
_decode_extension = msgspec.msgpack.Decoder(_Extension).decode

Meta = tuple[int, int, float]
"""Session, sequence, publish time in POSIX seconds."""


class TopicCounter:
    """What publishing on one topic needs: the place of the next message in its stream, and the cached start of its command.

    Attributes:
        topic: the name of the topic.
        name: the same as it travels.
        session: the publisher's random id, not 0.
        sequence: of the last message; 0 before the first.
        head: the start of the last command, up to what differs from message to message.
        head_for: the sizes that ``head`` is right for.
    """

    __slots__ = ("head", "head_for", "name", "sequence", "session", "topic")

    def __init__(self, topic: str, session: int, sequence: int = 0) -> None:
        self.topic = topic
        self.name = topic.encode()
        self.session = session
        self.sequence = sequence
        self.head = b""
        self.head_for: object = None


def unpack_header(value: bytes | str) -> tuple[int, int, int] | None:
    """Session, sequence and publish time in nanoseconds of the native header's value; ``None`` if it is none of ours."""
    if len(value) != HEADER_DIGITS:
        return None
    try:
        meta = unpack_meta(unhexlify(value))
    except ValueError:
        return None
    return meta if meta[1] else None


def parse_header(value: bytes | str) -> Meta | None:
    """The same with the publish time in seconds."""
    meta = unpack_header(value)
    return None if meta is None else (meta[0], meta[1], meta[2] * 1e-9)


def prefix(session: int, sequence: int, published_ns: int, extension: bytes) -> bytes:
    """The Redis prefix; the payload follows it."""
    return _PREFIX.pack(MAGIC, len(extension), session, sequence, published_ns) + extension


def pack_extension(key: str | None, headers: Mapping[str, str] | None) -> bytes:
    """Key and headers behind the fixed prefix; empty if there are none."""
    return _encode_extension((key, dict(headers or {}))) if key is not None or headers else b""


def prefix_length(data: bytes, start: int, size: int) -> int:
    """Bytes of the prefix, extension included, of the ``size`` bytes at ``start``; 0 if they are a raw payload."""
    if size < PREFIX_BYTES or data[start] != _FIRST:
        return 0
    magic, extension, _, sequence, _ = _PREFIX.unpack_from(data, start)
    return PREFIX_BYTES + extension if magic == MAGIC and sequence and PREFIX_BYTES + extension <= size else 0


def unpack_extension(data: bytes) -> tuple[str | None, Mapping[str, str]]:
    """Key and headers.

    Raises:
        ValueError: these bytes are no extension.
    """
    if len(data) > MAX_EXTENSION_BYTES:
        raise ValueError("not an extension of a size that is read")
    try:
        key, headers = _decode_extension(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError("not an extension") from error
    return key, headers
