"""Session, sequence and publish time of a message, as they travel.

On NATS and Kafka they ride in one native header, ``msight``, as 48 hexadecimal digits: session, sequence and publish
time in nanoseconds since 1970, 16 digits each. Redis has no headers, so there a prefix of 32 bytes carries them::

    0xC1 'M' 'B' version:u8  extension:u32  session:u64  sequence:u64  published_at:u64     (big-endian)

followed by ``extension`` bytes of MessagePack: ``[key or nil, {header: value}]``, absent when there is neither. 0xC1 is the
one byte that MessagePack never uses (its specification calls it "never used"), so no MSight payload begins with it; what does
not pass the check is a raw payload.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Mapping

import msgspec

HEADER = "msight"
"""Name of the native header that carries the metadata."""

_PREFIX = struct.Struct(">4sIQQQ")
_PREFIX_START = struct.Struct(">4sI")
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

MAGIC = b"\xc1MB\x01"
_FIRST = 0xC1
_Extension = tuple[str | None, dict[str, str]]
_encode_extension = msgspec.msgpack.Encoder().encode
_decode_extension = msgspec.msgpack.Decoder(_Extension).decode

Meta = tuple[int, int, float]
"""Session, sequence, publish time in POSIX seconds."""


def parse_header(value: bytes | str) -> Meta | None:
    """Read the native header's value; ``None`` if it is none of ours."""
    if len(value) != HEADER_DIGITS:
        return None
    try:
        session, sequence, published_ns = unpack_meta(unhexlify(value))
    except ValueError:
        return None
    return session, sequence, published_ns * 1e-9


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
    magic, extension = _PREFIX_START.unpack_from(data, start)
    return PREFIX_BYTES + extension if magic == MAGIC and PREFIX_BYTES + extension <= size else 0


def unpack_extension(data: bytes) -> tuple[str | None, Mapping[str, str]]:
    """Key and headers.

    Raises:
        ValueError: these bytes are no extension.
    """
    try:
        key, headers = _decode_extension(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError("not an extension") from error
    return key, headers
