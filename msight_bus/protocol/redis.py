"""Encoding and decoding of RESP2 for Redis pub/sub. Pure.

Source: the Redis serialization protocol specification, and the command pages of PUBLISH, SUBSCRIBE, PSUBSCRIBE and PING.

The same decoder serves both connections: a subscribing connection receives ``*3 message <channel> <data>`` and
``*4 pmessage <pattern> <channel> <data>``, confirmations and pongs; a publishing connection receives integers and errors.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any, Final

from msight_bus.errors import HeaderError, too_large
from msight_bus.protocol import envelope
from msight_bus.protocol.codec import Codec, Decoded
from msight_bus.protocol.envelope import MAGIC, PREFIX_BYTES, TopicCounter
from msight_bus.protocol.head_cache import Address, Frame, HeadCache, Shape, before_foreign
from msight_bus.protocol.stream_decoder import DecodeBuffer, Decoder, FrameTooLargeError, ProtocolError, Reply

OVERHEAD = 64 * 1024
"""Bytes that a received message may have in addition to ``max_message_bytes``, for the envelope."""

MAX_LINE = 64 * 1024
"""Maximum bytes of a line, and of a bulk string in a reply."""

MAX_ELEMENTS = 1024
"""Maximum number of elements of a reply, nested ones included; ROLE lists replicas."""

MAX_DEPTH = 4
"""Maximum depth of nested arrays."""

MAX_NAME = 64 * 1024
"""Maximum bytes of a channel or pattern that was subscribed."""

_INVALID_LENGTH = "Invalid length from Redis: a number of at most 10 digits is expected."

# -- sending

PING: Final = b"*1\r\n$4\r\nPING\r\n"


_LIMIT = "client-output-buffer-limit pubsub"


def publish(  # noqa: PLR0917 - once a message, and keywords cost time
    counter: TopicCounter, payload: bytes, key: str | None, headers: Mapping[str, str] | None, now: int, limit: int
) -> tuple[tuple[bytes, ...], int]:
    """Encode a PUBLISH of the topic's next message (`codec.Publish`).

    Raises:
        MessageTooLargeError: Redis would close the connections of the subscribers that receive the message.
        HeaderError: key and headers exceed `envelope.MAX_EXTENSION_BYTES`.
    """
    if headers or key is not None:
        return _publish_extended(counter, payload, envelope.pack_extension(key, headers), now, limit)
    size = PREFIX_BYTES + len(payload)
    if size > limit:
        raise too_large("Redis", size, limit, _LIMIT)
    if counter.head_for != size:
        _set_head(counter, size)
    counter.sequence = sequence = counter.sequence + 1
    return (counter.head, envelope.pack_prefix(MAGIC, 0, counter.session, sequence, now), payload, b"\r\n"), size


def _publish_extended(
    counter: TopicCounter, payload: bytes, extension: bytes, now: int, limit: int
) -> tuple[tuple[bytes, ...], int]:
    if len(extension) > envelope.MAX_EXTENSION_BYTES:
        raise HeaderError(
            f"Key and headers take {len(extension)} bytes together; at most {envelope.MAX_EXTENSION_BYTES} are accepted on Redis."
        )
    size = PREFIX_BYTES + len(extension) + len(payload)
    if size > limit:
        raise too_large("Redis", size, limit, _LIMIT)
    _set_head(counter, size)
    counter.sequence = sequence = counter.sequence + 1
    prefix = envelope.prefix(counter.session, sequence, now, extension)
    return (counter.head, prefix, payload, b"\r\n"), size


def publish_raw(  # noqa: PLR0917 - once a message, and keywords cost time
    counter: TopicCounter, payload: bytes, key: str | None, headers: Mapping[str, str] | None, now: int, limit: int
) -> tuple[tuple[bytes, ...], int]:
    """Encode a PUBLISH of a payload without a prefix, and so without a sequence (`codec.Publish`).

    Raises:
        MessageTooLargeError: as `publish`.
        HeaderError: there are headers or a key.
    """
    if headers or key is not None:
        raise HeaderError(
            "Headers and keys cannot be sent with MSIGHT_WIRE=raw: publish without them, or unset MSIGHT_WIRE."
        )
    size = len(payload)
    if size > limit:
        raise too_large("Redis", size, limit, _LIMIT)
    if counter.head_for != size:
        _set_head(counter, size)
    return (counter.head, payload, b"\r\n"), size


def _set_head(counter: TopicCounter, size: int) -> None:
    name = counter.name
    counter.head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, size)
    counter.head_for = size


def subscribe(name: bytes, *, by_pattern: bool) -> bytes:
    """Encode a SUBSCRIBE to one channel, or a PSUBSCRIBE to one pattern; the confirmation is a ``subscribe`` or ``psubscribe``
    reply, or an ``error``."""
    command = b"$10\r\nPSUBSCRIBE" if by_pattern else b"$9\r\nSUBSCRIBE"
    return b"*2\r\n%b\r\n$%d\r\n%b\r\n" % (command, len(name), name)


def unsubscribe(name: bytes, *, by_pattern: bool) -> bytes:
    """Encode an UNSUBSCRIBE from one channel, or a PUNSUBSCRIBE; no message follows the reply of the same name."""
    command = b"$12\r\nPUNSUBSCRIBE" if by_pattern else b"$11\r\nUNSUBSCRIBE"
    return b"*2\r\n%b\r\n$%d\r\n%b\r\n" % (command, len(name), name)


def glob_of(pattern: str) -> bytes:
    """Return the glob-style pattern of PSUBSCRIBE for a pattern of topics: ``*`` there matches dots, so it can match more.

    No other character of a topic is special in a glob-style pattern.
    """
    return pattern.replace(">", "*").encode()


# -- receiving

_MESSAGE = b"*3\r\n$7\r\nmessage\r\n$"
_PMESSAGE = b"*4\r\n$8\r\npmessage\r\n$"
_INTEGERS = re.compile(rb"(?::-?\d{1,19}+\r\n){1,4096}+")
_INTEGER_BYTES = 23
"""Bytes of the longest integer reply."""

_PREFIX_START = MAGIC + bytes(4)
"""The beginning of a prefix without an extension; the metadata follows."""

_unpack_meta = struct.Struct(">QQQ").unpack_from

_NAME = rb"\$\d{1,3}+\r\n[^\r]{1,999}+\r\n"
_USUAL = re.compile(
    rb"(\*(?:3\r\n\$7\r\nmessage\r\n|4\r\n\$8\r\npmessage\r\n" + _NAME + rb")" + _NAME + rb")"
    rb"\$(\d{1,9}+)\r\n(\xc1MB\x01\0\0\0\0)?+"
)
"""Up to the payload: all up to the channel, the length of the payload, the beginning of a prefix without an extension."""

_ADDRESSES = 4096
_LONGEST_START = 512
"""Maximum number of cached addresses, and of bytes of a message up to its channel."""

_SIZES = {b"%d" % size: size for size in range(4096)}
"""Small lengths, which are looked up instead of parsed."""

_PONG = Reply("PONG")
_PREFIX_FIRST = MAGIC[0]
_LF = 0x0A
_CR = 0x0D
_ARRAY, _BULK, _STRING, _ERROR, _INTEGER = b"*$+-:"
_SUBSCRIPTION_REPLIES = {name.encode(): name for name in ("subscribe", "unsubscribe", "psubscribe", "punsubscribe")}


def decoder(max_message_bytes: int) -> Decoder:
    """Make a decoder for one connection to Redis.

    Args:
        max_message_bytes: maximum bytes of a message; `OVERHEAD` more are accepted.

    The metadata of an `Undecoded` message is the envelope (24 bytes, then the extension), or ``b""`` for a raw payload; see
    `decode_metadata`.
    """
    buffer = DecodeBuffer()
    return Decoder(_Grammar(buffer, max_message_bytes + OVERHEAD), buffer, HeadCache(_make_shape))


def decode_metadata(metadata: bytes, payload: bytes) -> Decoded:
    """Decode an `Undecoded` message (`codec.Decoded`)."""
    if not metadata:
        return None, None, {}, payload
    session, sequence, published = envelope.unpack_meta(metadata[:24])
    try:
        key, headers = envelope.unpack_extension(metadata[24:])
    except ValueError:  # a raw payload that begins like a prefix
        return None, None, {}, envelope.prefix(session, sequence, published, metadata[24:]) + payload
    return (session, sequence, published), key, headers, payload


CODEC: Final = Codec(publish, decoder, decode_metadata)
RAW_CODEC: Final = Codec(publish_raw, decoder, decode_metadata)
"""Publishes payloads without the envelope; receives messages with and without."""


def _make_shape(head_bytes: int, payload_bytes: int) -> Shape:
    """Make a `Shape`; the tuple that `struct` unpacks is a `Frame`."""
    layout = struct.Struct(f">{head_bytes}sQQQ{payload_bytes}s2x")
    unpack_all: Any = layout.iter_unpack
    unpack: Any = layout.unpack_from
    size, lowest = layout.size, head_bytes + 15

    def unpack_frames(data: bytes, start: int, stop: int) -> list[Frame]:
        return before_foreign(list(unpack_all(memoryview(data)[start:stop])), data[start + lowest : stop : size])

    return Shape(size, unpack, unpack_frames)


class _Grammar:
    """The parser of RESP2."""

    __slots__ = ("_addresses", "_buffer", "_limit")

    def __init__(self, buffer: DecodeBuffer, limit: int) -> None:
        self._buffer = buffer
        self._limit = limit
        self._addresses: dict[bytes, Address] = {}  # by all of a message up to its channel

    def read(self, data: bytes, position: int, limit: int, heads: HeadCache | None) -> tuple[int, int]:
        """See `Grammar.read`."""
        buffer, largest = self._buffer, self._limit
        opened, add = buffer.opened, buffer.add
        match, address_of = _USUAL.match, self._addresses.get
        startswith, end = data.startswith, len(data)
        taken = 0
        while taken < limit and position < end:
            usual = match(data, position)
            if usual is not None and (address := address_of((parts := usual.groups())[0])) is not None:
                _, digits, has_prefix = parts
                if (size := _SIZES.get(digits, -1)) < 0:
                    size = int(digits)
                body = usual.end() - 8 if has_prefix else usual.end()
            elif startswith((_MESSAGE, _PMESSAGE), position):
                found = self._read_head(data, position)
                if found is None:
                    break
                address, body, size = found
                has_prefix = startswith(_PREFIX_START, body)
                if usual is not None and usual.end(2) + 2 == body and len(usual[1]) <= _LONGEST_START:
                    if len(self._addresses) >= _ADDRESSES:
                        self._addresses.clear()
                    self._addresses[usual[1]] = address
            else:
                after, count = self._read_reply(data, position, limit - taken)
                if not count:
                    break
                position = after
                taken += count
                continue
            if size > largest:
                raise FrameTooLargeError(
                    f"Redis announced a message of {size} bytes; at most {largest} are accepted "
                    "(MSIGHT_MAX_MESSAGE_BYTES and the envelope).",
                    size=size,
                    limit=largest,
                )
            after = body + size + 2
            if after > end and body + min(size, PREFIX_BYTES) > end:
                break
            if has_prefix and size >= PREFIX_BYTES and (meta := _unpack_meta(data, body + 8))[1]:
                if heads is not None:
                    heads.learn(address, data[position : body + 8], size - PREFIX_BYTES)
                if after > end:
                    buffer.begin((address, meta, b""), data, body + PREFIX_BYTES, after - end)
                else:
                    session, sequence, published = meta
                    frame = b"", session, sequence, published, data[body + PREFIX_BYTES : after - 2]
                    if (frames := opened.get(address)) is not None:
                        frames.append(frame)
                    else:
                        add(address, frame)
            elif after > end:
                buffer.begin((address, None, b""), data, body, after - end)
            elif size and data[body] == _PREFIX_FIRST:
                self.add_undecoded(address, b"", data[body : after - 2])
            else:
                buffer.add_undecoded(address, (b"", data[body : after - 2]))
            taken += 1
            if after > end:
                return end, taken
            position = after
            if heads is not None:
                break
        return position, taken

    def add_undecoded(self, address: Address, block: bytes, payload: bytes) -> None:
        """See `Grammar.add_undecoded`; there is no ``block``."""
        prefix = envelope.prefix_length(payload, 0, len(payload))
        self._buffer.add_undecoded(address, (payload[8:prefix], payload[prefix:]))

    def _read_head(self, data: bytes, position: int) -> tuple[Address, int, int] | None:
        """Parse the address, and the offset and length of the payload; ``None`` if incomplete."""
        pattern = data.startswith(_PMESSAGE, position)
        at = position + (len(_PMESSAGE) if pattern else len(_MESSAGE)) - 1
        first = self._read_name(data, position, at, MAX_NAME)
        if first is None:
            return None
        address: Address = first[0]
        if pattern:  # which matches a channel of any length
            second = self._read_name(data, position, first[1], self._limit)
            if second is None:
                return None
            address = first[0], second[0]
            first = second
        size = _read_length(data, first[1])
        return None if size is None else (address, size[1], size[0])

    def _read_name(self, data: bytes, frame: int, position: int, most: int) -> tuple[bytes, int] | None:
        """Parse a channel or pattern of the message at ``frame``; return the name and the end position; ``None``: incomplete."""
        length = _read_length(data, position)
        if length is None:
            return None
        size, start = length
        if size > most:
            raise ProtocolError(f"Redis announced a channel of {size} bytes; at most {most} are accepted.")
        after = start + size + 2
        if after > len(data):
            self._buffer.needed = after - frame
            return None
        if data[after - 2 : after] != b"\r\n":
            raise ProtocolError("Invalid message from Redis: no CR LF after a channel.")
        return data[start : after - 2], after

    def _read_reply(self, data: bytes, position: int, limit: int) -> tuple[int, int]:
        """Parse one reply, or a run of integers; return the end position and the number of replies, 0 if incomplete."""
        kind = data[position]
        if kind == _INTEGER:
            return self._read_integers(data, position, limit)
        if kind in (_ARRAY, _BULK):
            after, value = _read_value(data, position, [MAX_ELEMENTS])
            reply = _to_reply(value)
        elif kind in (_STRING, _ERROR):
            after = _line_end(data, position)
            text = data[position + 1 : after - 2]
            reply = (
                _PONG if text == b"PONG" and kind == _STRING else Reply("error" if kind == _ERROR else "status", text)
            )
        else:
            raise ProtocolError(
                "Invalid reply type from Redis: one of + - : $ * is expected; the peer does not speak RESP2."
            )
        if not after:
            return position, 0
        self._buffer.add_reply(reply)
        return after, 1

    def _read_integers(self, data: bytes, position: int, limit: int) -> tuple[int, int]:
        found = _INTEGERS.match(data, position)
        if found is None:
            if (after := _line_end(data, position)) or len(data) - position > _INTEGER_BYTES:
                raise ProtocolError(
                    "Invalid integer reply from Redis: ':' and a number of at most 64 bits are expected."
                )
            return position, 0
        after = found.end()
        count = data.count(b"\n", position, after)
        if count > limit:
            count = limit
            lines = data[position:after].split(b"\n", limit)
            after -= len(lines[-1])
        self._buffer.add_reply(Reply("integer", count=count))
        return after, count


def _to_reply(value: object) -> Reply:
    if not isinstance(value, list):
        return Reply("bulk", value if isinstance(value, bytes) else b"")
    first = value[0] if value else None
    if first == b"pong":
        return _PONG
    name = _SUBSCRIPTION_REPLIES.get(first) if isinstance(first, bytes) and len(value) == 3 else None
    if name is None:
        return Reply("array", elements=value)
    return Reply(name, value[1] if isinstance(value[1], bytes) else b"")


def _read_value(data: bytes, position: int, room: list[int], depth: int = 0) -> tuple[int, object]:
    """Read an array, bulk string or simple value.

    Args:
        data: a chunk.
        position: where the value begins.
        room: list of one number, the elements that the reply may still have.
        depth: number of arrays around the value.

    Returns:
        The end position (0: incomplete), and the value.
    """
    after = _line_end(data, position)
    if not after:
        return 0, None
    kind, text = data[position], data[position + 1 : after - 2]
    if kind in (_STRING, _ERROR):
        return after, text
    if kind == _INTEGER and len(text) <= 20 and text.removeprefix(b"-").isdigit():
        return after, int(text)
    if kind not in (_ARRAY, _BULK):
        raise ProtocolError(
            "Invalid element in an array reply from Redis: an integer, string, error or array is expected."
        )
    if text == b"-1":
        return after, None
    size = _number(text)
    if kind == _BULK:
        if size > MAX_LINE:
            raise ProtocolError(
                f"Redis announced a string of {size} bytes in a reply; at most {MAX_LINE} are accepted."
            )
        stop = after + size
        return (stop + 2, data[after:stop]) if stop + 2 <= len(data) else (0, None)
    room[0] -= size
    if room[0] < 0 or depth == MAX_DEPTH:
        raise ProtocolError(
            f"Reply from Redis too large: at most {MAX_ELEMENTS} elements and {MAX_DEPTH} nested arrays are accepted."
        )
    values: list[object] = []
    for _ in range(size):
        after, value = _read_value(data, after, room, depth + 1)
        if not after:
            return 0, None
        values.append(value)
    return after, values


def _line_end(data: bytes, position: int) -> int:
    """Return the end position of the line at ``position``, CR LF included; 0 if the line is incomplete."""
    eol = data.find(b"\r\n", position, position + MAX_LINE + 2)
    if eol >= 0:
        return eol + 2
    length = len(data) - position
    if length > MAX_LINE and not (length == MAX_LINE + 1 and data[-1] == _CR):
        raise ProtocolError(f"Line from Redis exceeds {MAX_LINE} bytes; the peer does not speak RESP2.")
    return 0


def _read_length(data: bytes, position: int) -> tuple[int, int] | None:
    """Parse ``$<digits>`` at ``position``; return the length and the offset of the string, ``None`` if incomplete."""
    if position >= len(data):
        return None
    if data[position] != _BULK:
        raise ProtocolError("Invalid message from Redis: '$' and a length are expected.")
    eol = data.find(b"\r\n", position, position + 13)
    if eol < 0:
        if len(data) - position >= 13:  # at most ten digits
            raise ProtocolError(_INVALID_LENGTH)
        return None
    return _number(data[position + 1 : eol]), eol + 2


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 10:
        raise ProtocolError(_INVALID_LENGTH)
    return int(digits)
