"""Encoding and decoding of the NATS client protocol. Pure.

Source: the NATS client protocol reference. Control lines end with CR LF; the payload of MSG and HMSG follows its line. A PONG
confirms everything written before its PING.
"""

from __future__ import annotations

import json
import struct
from binascii import hexlify, unhexlify
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast
from urllib.parse import quote, unquote

from msight_bus.errors import too_large
from msight_bus.protocol import envelope
from msight_bus.protocol.codec import Codec, Decoded
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.head_cache import FOREIGN, Address, Frame, HeadCache, Meta, Shape, before_foreign
from msight_bus.protocol.stream_decoder import DecodeBuffer, Decoder, FrameTooLargeError, ProtocolError, Reply

OVERHEAD = 64 * 1024
"""Bytes that a received message may have in addition to ``max_message_bytes``."""

MAX_CONTROL_LINE = 1024 * 1024
"""Maximum bytes of a control line: INFO lists the addresses of a cluster and can be long."""

_START = b"NATS/1.0\r\nmsight: "
_START_BYTES = len(_START)
META_BYTES = _START_BYTES + envelope.HEADER_DIGITS
"""Bytes of the header block up to the end of the metadata."""

_BLOCK_END = b"\r\n\r\n"
_BLOCK_BYTES = META_BYTES + len(_BLOCK_END)
_META = struct.Struct(">QQQ")
_pack_sequence_and_time = struct.Struct(">QQ").pack

# -- sending

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"
NO_EXTENSION: Final = _BLOCK_END
"""The extension of a message without key and headers."""

_EMPTY_KEY = '""'


def pack_extension(key: str | None, headers: Mapping[str, str] | None) -> bytes:
    """Encode key and headers: the part of the header block after the metadata, its end included."""
    if key is None and not headers:
        return NO_EXTENSION
    start = b"" if key is None else b" " + _pack_key(key).encode()
    lines = [b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return b"%b\r\n%b\r\n" % (start, b"".join(lines))


def publish(  # noqa: PLR0917 - once a message, and keywords cost time
    counter: TopicCounter, payload: bytes, key: str | None, headers: Mapping[str, str] | None, now: int, limit: int
) -> tuple[tuple[bytes, ...], int]:
    """Encode an HPUB of the topic's next message (`codec.Publish`).

    Raises:
        MessageTooLargeError: headers and payload exceed ``max_payload``; the server would close the connection.
    """
    extension = pack_extension(key, headers) if headers or key is not None else NO_EXTENSION
    block_bytes = META_BYTES + len(extension)
    size = block_bytes + len(payload)
    if size > limit:
        raise too_large("NATS", size, limit, "max_payload of the server")
    sizes = block_bytes, size
    if counter.head_for != sizes:
        counter.head = b"HPUB %b %d %d\r\nNATS/1.0\r\nmsight: %016x" % (
            counter.name,
            block_bytes,
            size,
            counter.session,
        )
        counter.head_for = sizes
    counter.sequence = sequence = counter.sequence + 1
    digits = hexlify(_pack_sequence_and_time(sequence, now))  # twice as fast as "%016x%016x"
    return (counter.head, digits, extension, payload, b"\r\n"), size


def subscribe(subject: bytes, sid: bytes, group: bytes | None = None) -> bytes:
    """Encode a SUB to a subject or wildcard, in a queue group if given.

    A round trip confirms the subscription; a refusal is an ``error`` before the PONG.
    """
    return b"SUB %b %b%b\r\n" % (subject, b"" if group is None else group + b" ", sid)


def unsubscribe(sid: bytes) -> bytes:
    """Encode an UNSUB; no message follows the PONG of a later PING."""
    return b"UNSUB %b\r\n" % sid


def address_of(subject: bytes, sid: bytes) -> bytes:
    """Return the `Address` of messages on ``subject`` for the subscription ``sid``.

    Ids that differ only behind a dot have the same address, so that messages which arrive with either keep their order.
    """
    return b"%b %b" % (subject, sid.partition(b".")[0])


def _pack_key(key: str) -> str:
    """Encode a key, which follows the metadata. Other clients strip spaces, so an empty key is written as two quotation marks."""
    return quote(key, safe="") or _EMPTY_KEY


def _unpack_key(text: str) -> str:
    return "" if text == _EMPTY_KEY else unquote(text)


# -- receiving

_SIZES = {b"%d" % size: size for size in range(4096)}
_LINE_AND_END = MAX_CONTROL_LINE + 2
_HEADS = 4096
_LONGEST_HEAD = 512
"""Maximum number of cached heads, and of bytes of a head: a MSG or HMSG line without the last word, the total bytes."""

_KINDS = {b"PING": Reply("PING"), b"PONG": Reply("PONG"), b"+OK": Reply("OK")}


def decoder(max_message_bytes: int) -> Decoder:
    """Make a decoder for one connection to NATS.

    Args:
        max_message_bytes: maximum bytes of a message, header block included; `OVERHEAD` more are accepted.

    The metadata of an `Undecoded` message is the header block, ``b""`` if it has no headers; see `decode_metadata`.
    """
    buffer = DecodeBuffer()
    return Decoder(_Grammar(buffer, max_message_bytes + OVERHEAD), buffer, HeadCache(_make_shape))


def decode_metadata(block: bytes, payload: bytes) -> Decoded:
    """Decode an `Undecoded` message (`codec.Decoded`)."""
    if not block:
        return None, None, {}, payload
    headers = parse_headers(block)
    digits, has_key, key = headers.pop(envelope.HEADER, "").partition(" ")
    meta = envelope.unpack_header(digits)
    return meta, _unpack_key(key) if has_key else None, headers, payload


CODEC: Final = Codec(publish, decoder, decode_metadata)


def parse_headers(block: bytes) -> dict[str, str]:
    """Parse an HMSG header block (``NATS/1.0`` line, then ``name: value`` lines). Of a repeated name, keep the last value."""
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode("utf-8", "replace")] = value.removeprefix(b" ").decode("utf-8", "replace")
    return headers


def parse_info(reply: Reply) -> dict[str, Any]:
    """Parse the fields of an ``INFO`` reply; empty if the JSON is not valid."""
    try:
        fields = json.loads(reply.data)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _make_shape(head_bytes: int, payload_bytes: int) -> Shape:
    """Make a `Shape`; the metadata, the end of the header block and the payload follow the head."""
    block_end_at = head_bytes + envelope.HEADER_DIGITS
    layout = struct.Struct(f">{head_bytes}s48s4x{payload_bytes}s2x")
    size = layout.size
    unpack: Any = layout.unpack_from
    unpack_all: Any = layout.iter_unpack
    unpack_meta: Any = _META.unpack

    def frame(data: bytes, position: int) -> Frame:
        if not data.startswith(_BLOCK_END, position + block_end_at):
            return FOREIGN
        head, digits, payload = unpack(data, position)
        try:
            session, sequence, published = unpack_meta(unhexlify(digits))
        except ValueError:  # not an envelope of the bus
            return FOREIGN
        return head, session, sequence, published, payload

    def unpack_frames(data: bytes, start: int, stop: int) -> list[Frame]:
        count = (stop - start) // size
        for column, byte in enumerate(_BLOCK_END, block_end_at):  # the ends of the blocks, a column of bytes at a time
            ends = data[start + column : start + count * size : size]
            if ends.count(byte) < count:
                count = len(ends) - len(ends.lstrip(bytes((byte,))))
        rows = list(unpack_all(memoryview(data)[start : start + count * size]))
        try:
            metadata = unhexlify(b"".join([row[1] for row in rows]))
        except ValueError:  # one of them is not an envelope of the bus
            return []
        metas = cast(Iterator[Meta], _META.iter_unpack(metadata))
        frames = [
            (row[0], session, sequence, published, row[2])
            for (session, sequence, published), row in zip(metas, rows, strict=True)
        ]
        return before_foreign(frames, metadata[15::24])

    return Shape(size, frame, unpack_frames)


class _Grammar:
    """The parser of MSG, HMSG and control lines."""

    __slots__ = ("_buffer", "_heads", "_limit")

    def __init__(self, buffer: DecodeBuffer, limit: int) -> None:
        self._buffer = buffer
        self._limit = limit
        self._heads: dict[bytes, tuple[Address, int]] = {}  # address, bytes of the header block

    def read(self, data: bytes, position: int, limit: int, heads: HeadCache | None) -> tuple[int, int]:
        """See `Grammar.read`."""
        buffer, largest = self._buffer, self._limit
        opened, opened_undecoded, add = buffer.opened, buffer.opened_undecoded, buffer.add
        parsed, size_of = self._heads.get, _SIZES.get
        find, startswith, end = data.find, data.startswith, len(data)
        taken = before = 0
        while taken < limit and position < end:
            eol = find(b"\r\n", position, position + _LINE_AND_END)
            if eol < 0:
                if end - position >= _LINE_AND_END:
                    raise ProtocolError(
                        f"Control line from NATS exceeds {MAX_CONTROL_LINE} bytes; the peer does not speak NATS."
                    )
                break
            start = eol + 2
            head, _, digits = data[position:eol].rpartition(b" ")
            known = parsed(head)
            if known is not None:
                address, block_bytes = known
                total = size_of(digits, -1)
                if total < 0:
                    total = _parse_size(digits)
            elif data[position] in (_H, _M):
                address, block_bytes, total = self._read_line(data[position:eol])
            else:
                buffer.add_reply(_reply(data[position:eol]))
                taken += 1
                position = start
                continue
            if total > largest:
                raise FrameTooLargeError(
                    f"NATS announced a message of {total} bytes; at most {largest} are accepted "
                    "(MSIGHT_MAX_MESSAGE_BYTES and the headers).",
                    size=total,
                    limit=largest,
                )
            body = start + block_bytes
            after = start + total + 2
            if body > after - 2:
                raise ProtocolError(
                    f"Invalid HMSG from NATS: a header of {block_bytes} bytes in a message of {total} bytes."
                )
            if body > end:
                buffer.needed = body - position
                break
            meta = None
            if block_bytes == _BLOCK_BYTES and startswith(_START, start) and startswith(_BLOCK_END, body - 4):
                meta = envelope.unpack_header(data[start + _START_BYTES : body - 4])
            if meta is None:
                block = data[start:body] if block_bytes else b""
                if after > end:
                    buffer.begin((address, None, block), data, body, after - end)
                else:
                    undecoded = block, data[body : after - 2]
                    if (found := opened_undecoded.get(address)) is not None:
                        found.append(undecoded)
                    else:
                        found = buffer.add_undecoded(address, undecoded)
                    if total == before and not block_bytes:  # foreign messages of equal size repeat the line
                        line, size = data[position:start], after - position
                        while startswith(line, after) and after + size <= end and taken + 1 < limit:
                            found.append((b"", data[after + len(line) : after + size - 2]))
                            after += size
                            taken += 1
                    before = total
            else:
                if heads is not None:
                    heads.learn(address, data[position : start + _START_BYTES], after - 2 - body)
                if after > end:
                    buffer.begin((address, meta, b""), data, body, after - end)
                else:
                    session, sequence, published = meta
                    frame = b"", session, sequence, published, data[body : after - 2]
                    if (frames := opened.get(address)) is not None:
                        frames.append(frame)
                    else:
                        add(address, frame)
            taken += 1
            if after > end:
                return end, taken
            position = after
            if heads is not None:
                break
        return position, taken

    def _read_line(self, line: bytes) -> tuple[Address, int, int]:
        """Parse address, header bytes and total bytes of any MSG or HMSG line; cache a plain head.

        A plain head has no reply subject, and single spaces between the words. The caller splits a line with a cached head at
        the last space.
        """
        kind, *words = line.split()
        sizes = 2 if kind == b"HMSG" else 1
        if kind not in (b"MSG", b"HMSG") or not 2 <= len(words) - sizes <= 3:
            raise ProtocolError("Invalid MSG or HMSG line from NATS: subject, subscription id and sizes are expected.")
        address, block_bytes = address_of(words[0], words[1]), _parse_size(words[-2]) if sizes == 2 else 0
        head = line.rpartition(b" ")[0]
        if len(words) - sizes == 2 and len(head) <= _LONGEST_HEAD and line.split(b" ") == [kind, *words]:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[head] = address, block_bytes
        return address, block_bytes, _parse_size(words[-1])

    def add_undecoded(self, address: Address, block: bytes, payload: bytes) -> None:
        """See `Grammar.add_undecoded`."""
        self._buffer.add_undecoded(address, (block, payload))


_H, _M = b"HM"


def _parse_size(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) >= 20:
        raise ProtocolError("Invalid message size from NATS: a number of at most 19 digits is expected.")
    return int(digits)


def _reply(line: bytes) -> Reply:
    reply = _KINDS.get(line)
    if reply is not None:
        return reply
    if line.startswith(b"INFO "):
        return Reply("INFO", line[5:])
    if line.startswith(b"-ERR"):
        return Reply("error", line[4:].strip().strip(b"'"))
    raise ProtocolError("Unknown control line from NATS; the peer does not speak NATS.")
