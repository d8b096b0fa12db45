"""RESP2 on a Redis connection that has subscribed: bytes in, messages and replies out. Pure.

Source: the Redis serialization protocol specification. A message is ``*3 message <channel> <data>``; replies to SUBSCRIBE,
UNSUBSCRIBE and PING are arrays too, or simple strings, and errors begin with ``-``.
"""

from __future__ import annotations

import struct
from typing import cast

from msight_bus.errors import ConnectionLostError
from msight_bus.wire import envelope
from msight_bus.wire.frames import Frame, FrameParser, Meta, Run

MAX_BULK = 512 * 1024 * 1024
"""Redis's default ``proto-max-bulk-len``."""

MAX_LINE = 64 * 1024
MAX_ELEMENTS = 16
"""Elements of a reply; those to SUBSCRIBE have three."""

_MESSAGE = b"*3\r\n$7\r\nmessage\r\n$"
_HEAD = len(_MESSAGE)
_PREFIX_BYTES = envelope.PREFIX_BYTES
_FRAMED = envelope.MAGIC + bytes(4)
"""How a prefix without an extension begins; what is behind it is the metadata."""

_unpack_meta = struct.Struct(">QQQ").unpack_from


class RespError(ConnectionLostError):
    """The peer does not speak RESP2."""


class RespParser(FrameParser[str | None]):
    """Splits a byte stream into messages and replies, of which the text of an error is kept.

    A message that is not a `Frame` is the bus's metadata (24 bytes, then the extension; empty in a raw payload) and the payload.

    Raises:
        RespError: from `feed`: this is not RESP2.
    """

    __slots__ = ()

    META_BYTES = 24

    def _meta_at(self, data: bytes, position: int) -> Meta | None:
        return cast(Meta, _unpack_meta(data, position))

    def _frames(self, run: Run, view: memoryview) -> list[Frame]:
        return run.rows(view)

    def _frame(self, data: bytes, position: int, end: int) -> int:
        if not data.startswith(_MESSAGE, position):
            return self._other_frame(data, position)
        eol = data.find(b"\r\n", position + _HEAD)
        if eol < 0:
            return self._incomplete(end - position, position)
        start = eol + 2
        stop = start + _length(data[position + _HEAD : eol], MAX_LINE)
        eol = data.find(b"\r\n", stop + 3)
        if eol < 0:
            return self._incomplete(end - stop, position)
        if data[stop : stop + 3] != b"\r\n$":
            raise RespError("A message of Redis cannot be read.")
        size = _length(data[stop + 3 : eol], MAX_BULK)
        body = eol + 2
        if body + min(size, _PREFIX_BYTES) > end:
            self._needed = body + min(size, _PREFIX_BYTES) - position
            return position
        after = body + size + 2
        channel = data[start:stop]
        if size >= _PREFIX_BYTES and data.startswith(_FRAMED, body):
            self._learn(channel, data[position : body + 8], f"QQQ{size - _PREFIX_BYTES}s2x")
            session, sequence, published = meta = _unpack_meta(data, body + 8)
            begin = body + _PREFIX_BYTES
            if after > end:
                return self._begin((channel, meta, b""), data, begin, after - end)
            self._add(channel, (b"", session, sequence, published, data[begin : after - 2]))
        elif after > end:
            return self._begin((channel, None, b""), data, body, after - end)
        else:
            self._complete(channel, b"", data[body : after - 2])
        return after

    def _complete(self, address: bytes, block: bytes, payload: bytes) -> None:
        prefix = envelope.prefix_length(payload, 0, len(payload))
        self._add_other(address, (payload[8:prefix], payload[prefix:]))

    def _other_frame(self, data: bytes, position: int) -> int:
        """Take one reply; returns where it ends, or ``position`` if it is incomplete."""
        eol = data.find(b"\r\n", position)
        if eol < 0:
            return self._incomplete(len(data) - position, position)
        kind, after = data[position], eol + 2
        if kind == _ARRAY:
            elements = _length(data[position + 1 : eol], MAX_BULK)
            if elements > MAX_ELEMENTS:
                raise RespError(f"A reply of {elements} elements is none that Redis gives to a subscriber.")
            for _ in range(elements):
                eol = data.find(b"\r\n", after)
                if eol < 0:
                    return self._incomplete(len(data) - after, position)
                if data[after] == _BULK and data[after + 1 : eol] != b"-1":
                    length = _length(data[after + 1 : eol], MAX_BULK)
                    if length > MAX_LINE:
                        raise RespError(f"An element of {length} bytes is none that Redis gives to a subscriber.")
                    eol += 2 + length
                    if eol + 2 > len(data):
                        return self._incomplete(0, position)
                after = eol + 2
        elif kind not in (_STRING, _ERROR, _INTEGER):
            raise RespError("The peer does not speak RESP2.")
        self._reply(data[position + 1 : after - 2].decode("utf-8", "replace") if kind == _ERROR else None)
        return after

    def _incomplete(self, without_end: int, position: int) -> int:
        if without_end > MAX_LINE:
            raise RespError("A line has no end; this is no Redis.")
        return position


_ARRAY, _BULK, _STRING, _ERROR, _INTEGER = b"*$+-:"


def _length(digits: bytes, limit: int) -> int:
    if not digits.isdigit() or len(digits) > 9 or (length := int(digits)) > limit:
        raise RespError("A length of Redis cannot be read.")
    return length
