"""RESP2 on a Redis connection that has subscribed: bytes in, messages and replies out. Pure.

Source: the Redis serialization protocol specification. A message is ``*3 message <channel> <data>``; replies to SUBSCRIBE,
UNSUBSCRIBE and PING are arrays too, or simple strings, and errors begin with ``-``.
"""

from __future__ import annotations

from msight_bus.errors import ConnectionLostError
from msight_bus.wire import envelope
from msight_bus.wire.runs import LARGEST, Run, Runs

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

Arrival = tuple[bytes, bytes, bytes]
"""Channel, the bus's metadata (24 bytes, then the extension; empty in a raw payload), payload."""


class RespError(ConnectionLostError):
    """The peer does not speak RESP2."""


class RespParser:
    """Splits a byte stream into messages and replies.

    Attributes:
        messages: what the last call of `feed` completed, in order, as `Arrival` tuples.
        replies: for each reply met by the last call, the number of messages that came before it, and the text of the error
            or ``None``.
    """

    __slots__ = ("_chunks", "_held", "_needed", "_runs", "messages", "replies")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 0
        self._runs = Runs()
        self.messages: list[Arrival] = []
        self.replies: list[tuple[int, str | None]] = []

    def feed(self, data: bytes) -> None:
        """Parse the next chunk, however it is cut.

        Raises:
            RespError: this is not RESP2.
        """
        self.messages = []
        self.replies = []
        if self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return  # a large payload is joined once, when its last byte is here
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._needed = 0
        position = 0
        while position < len(data):
            after = (
                self._messages(data, position) if data.startswith(_MESSAGE, position) else self._reply(data, position)
            )
            if after == position:
                rest = data[position:]
                self._chunks.append(rest)
                self._held = len(rest)
                return
            position = after

    def _messages(self, data: bytes, position: int) -> int:
        """Take messages until something else comes or one is incomplete; returns where that begins."""
        append = self.messages.append
        find, startswith = data.find, data.startswith
        end = len(data)
        while startswith(_MESSAGE, position):
            eol = find(b"\r\n", position + _HEAD)
            if eol < 0:
                return self._incomplete(end - position, position)
            start = eol + 2
            stop = start + _length(data[position + _HEAD : eol])
            eol = find(b"\r\n", stop + 3)
            if eol < 0:
                return self._incomplete(end - stop, position)
            if data[stop : stop + 3] != b"\r\n$":
                raise RespError("A message of Redis cannot be read.")
            size = _length(data[stop + 3 : eol])
            body = eol + 2
            after = body + size + 2
            if after > end:
                self._needed = after - position
                return position
            channel = data[start:stop]
            if size >= _PREFIX_BYTES and startswith(_FRAMED, body):
                append((channel, data[body + 8 : body + _PREFIX_BYTES], data[body + _PREFIX_BYTES : after - 2]))
                if size < LARGEST:
                    run = self._runs.seen(data[position:body], f"8s24s{size - _PREFIX_BYTES}s2x")
                    if run is not None:
                        after = self._take(run, channel, data, after)
            else:
                prefix = envelope.prefix_length(data, body, size)
                append((channel, data[body + 8 : body + prefix] if prefix else b"", data[body + prefix : after - 2]))
            position = after
        return position

    def _take(self, run: Run, channel: bytes, data: bytes, position: int) -> int:
        """Take the frames that go on as the last one did; returns where they end."""
        messages = self.messages
        head = run.head
        taken = len(messages)
        for first, framed, meta, payload in run.frames(data, position):
            if first != head or framed != _FRAMED:
                break
            messages.append((channel, meta, payload))
        return position + (len(messages) - taken) * run.size

    def _reply(self, data: bytes, position: int) -> int:
        """Take one reply; returns where it ends, or ``position`` if it is incomplete."""
        eol = data.find(b"\r\n", position)
        if eol < 0:
            return self._incomplete(len(data) - position, position)
        kind, after = data[position], eol + 2
        if kind == _ARRAY:
            elements = _length(data[position + 1 : eol])
            if elements > MAX_ELEMENTS:
                raise RespError(f"A reply of {elements} elements is none that Redis gives to a subscriber.")
            for _ in range(elements):
                eol = data.find(b"\r\n", after)
                if eol < 0:
                    return self._incomplete(len(data) - after, position)
                if data[after] == _BULK and data[after + 1 : eol] != b"-1":
                    length = _length(data[after + 1 : eol])
                    if length > MAX_LINE:
                        raise RespError(f"An element of {length} bytes is none that Redis gives to a subscriber.")
                    eol += 2 + length
                    if eol + 2 > len(data):
                        return self._incomplete(0, position)
                after = eol + 2
        elif kind not in (_STRING, _ERROR, _INTEGER):
            raise RespError("The peer does not speak RESP2.")
        error = data[position + 1 : after - 2].decode("utf-8", "replace") if kind == _ERROR else None
        self.replies.append((len(self.messages), error))
        return after

    def _incomplete(self, without_end: int, position: int) -> int:
        if without_end > MAX_LINE:
            raise RespError("A line has no end; this is no Redis.")
        return position


_ARRAY, _BULK, _STRING, _ERROR, _INTEGER = b"*$+-:"


def _length(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 9 or (length := int(digits)) > MAX_BULK:
        raise RespError("A length of Redis cannot be read.")
    return length
