"""The NATS client protocol, receiving side: bytes in, operations out. Pure.

Source: the NATS client protocol reference. Control lines end with CR LF; the payload of MSG and HMSG follows its line.
"""

from __future__ import annotations

from msight_bus.errors import ConnectionLostError
from msight_bus.wire.runs import LARGEST, Run, Runs

MAX_CONTROL_LINE = 1024 * 1024
"""INFO lists the cluster's addresses and can be long; anything longer than this is no NATS server."""

_LINE_AND_END = MAX_CONTROL_LINE + 2

MAX_PAYLOAD = 64 * 1024 * 1024
"""The largest max_payload that nats-server accepts."""

Arrival = tuple[bytes, bytes, bytes]
"""Subscription id, header block (empty if none; only its 48 digits if it is the bus's own header and no other), payload."""

_OURS = b"NATS/1.0\r\nmsight: "
_OURS_BYTES = len(_OURS) + 48 + 4


class ProtocolError(ConnectionLostError):
    """The peer does not speak NATS."""


class NatsParser:
    """Splits a byte stream into messages and control operations.

    Attributes:
        messages: what the last call of `feed` completed, in order, as `Arrival` tuples.
        operations: control lines (``PONG``, ``PING``, ``INFO …``, ``-ERR …``) met by the last call, each with the number of
            messages that came before it.
    """

    __slots__ = ("_chunks", "_held", "_needed", "_runs", "messages", "operations")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 0
        self._runs = Runs()
        self.messages: list[Arrival] = []
        self.operations: list[tuple[int, bytes]] = []

    def feed(self, data: bytes) -> None:
        """Parse the next chunk, however it is cut.

        Raises:
            ProtocolError: this is not the NATS protocol.
        """
        messages: list[Arrival] = []
        self.messages = messages
        self.operations = []
        if self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return  # a large payload is joined once, when its last byte is here
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._needed = 0
        end = len(data)
        position = 0
        find = data.find
        while position < end:
            eol = find(b"\r\n", position, position + _LINE_AND_END)
            if eol < 0:
                if end - position >= _LINE_AND_END:
                    raise ProtocolError("A control line has no end; this is no NATS server.")
                break
            first = data[position]
            if first == 77:  # M: MSG <subject> <sid> [reply-to] <bytes>
                words = data[position:eol].split()
                if not 4 <= len(words) <= 5 or words[0] != b"MSG":
                    raise ProtocolError("A MSG line cannot be read.")
                start = eol + 2
                stop = start + _size(words[-1])
                if stop + 2 > end:
                    self._needed = stop + 2 - position
                    break
                messages.append((words[2], b"", data[start:stop]))
                position = stop + 2
            elif first == 72:  # H: HMSG <subject> <sid> [reply-to] <header bytes> <total bytes>
                words = data[position:eol].split()
                if not 5 <= len(words) <= 6 or words[0] != b"HMSG":
                    raise ProtocolError("An HMSG line cannot be read.")
                start = eol + 2
                body = start + _size(words[-2])
                stop = start + _size(words[-1])
                if body > stop:
                    raise ProtocolError("An HMSG line has more header than message.")
                if stop + 2 > end:
                    self._needed = stop + 2 - position
                    break
                block = data[start:body]
                ours = len(block) == _OURS_BYTES and block.startswith(_OURS) and block.endswith(b"\r\n\r\n")
                messages.append((words[2], block[len(_OURS) : -4] if ours else block, data[body:stop]))
                after = stop + 2
                if ours and stop - body < LARGEST:
                    run = self._runs.seen(data[position : start + len(_OURS)], f"48s4s{stop - body}s2x")
                    if run is not None:
                        after = self._take(run, words[2], data, after)
                position = after
            else:
                self.operations.append((len(messages), data[position:eol]))
                position = eol + 2
        if position < end:
            rest = data[position:]
            self._chunks.append(rest)
            self._held = len(rest)

    def _take(self, run: Run, sid: bytes, data: bytes, position: int) -> int:
        """Take the frames that go on as the last one did; returns where they end."""
        messages = self.messages
        head = run.head
        taken = len(messages)
        for first, meta, end, payload in run.frames(data, position):
            if first != head or end != b"\r\n\r\n":
                break
            messages.append((sid, meta, payload))
        return position + (len(messages) - taken) * run.size


def _size(word: bytes) -> int:
    if not word.isdigit():
        raise ProtocolError("The size of a message is no number.")
    if len(word) > 9 or (size := int(word)) > MAX_PAYLOAD:
        raise ProtocolError("A message is longer than NATS allows.")
    return size


def parse_headers(block: bytes) -> dict[str, str]:
    """The headers of an HMSG block (``NATS/1.0`` line, then ``name: value`` lines); of a repeated name the last."""
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode("utf-8", "replace")] = value.removeprefix(b" ").decode("utf-8", "replace")
    return headers
