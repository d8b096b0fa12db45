"""The NATS client protocol, receiving side: bytes in, operations out. Pure.

Source: the NATS client protocol reference. Control lines end with CR LF; the payload of MSG and HMSG follows its line.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Iterator
from typing import cast

from msight_bus.errors import ConnectionLostError
from msight_bus.wire.frames import Frame, FrameParser, Meta, Run

MAX_CONTROL_LINE = 1024 * 1024
"""INFO lists the cluster's addresses and can be long; anything longer than this is no NATS server."""

_LINE_AND_END = MAX_CONTROL_LINE + 2

MAX_PAYLOAD = 64 * 1024 * 1024
"""The largest max_payload that nats-server accepts."""

_OURS = b"NATS/1.0\r\nmsight: "
_OURS_BYTES = len(_OURS) + 48 + 4


class ProtocolError(ConnectionLostError):
    """The peer does not speak NATS."""


_META = struct.Struct(">QQQ")
_BLOCK_END = b"\r\n\r\n"


class NatsParser(FrameParser[bytes]):
    """Splits a byte stream into messages and control lines (``PONG``, ``PING``, ``INFO …``, ``-ERR …``).

    A message that is not a `Frame` is a header block (empty if there is none) and a payload.

    Raises:
        ProtocolError: from `feed`: this is not the NATS protocol.
    """

    __slots__ = ()

    META_BYTES = 48 + len(_BLOCK_END)

    def _meta_at(self, data: bytes, position: int) -> Meta | None:
        if not data.startswith(_BLOCK_END, position + 48):
            return None
        try:
            return cast(Meta, _META.unpack(unhexlify(data[position : position + 48])))
        except ValueError:  # not by us
            return None

    def _run(self, address: bytes, head: bytes, fields: str) -> Run:
        run = Run(address, head, fields)
        row, at, unpack = run.row, run.head_bytes + 48, _META.unpack

        def frame(data: bytes, position: int) -> Frame | None:
            if not data.startswith(_BLOCK_END, position + at):
                return None
            _, digits, payload = row(data, position)
            try:
                session, sequence, published = unpack(unhexlify(digits))
            except ValueError:  # not by us
                return None
            return b"", session, sequence, published, payload

        run.frame = frame
        return run

    def _frames(self, run: Run, view: memoryview) -> list[Frame]:
        rows = run.rows(view)
        view = view[: len(rows) * run.size]
        for column, byte in enumerate(_BLOCK_END, run.head_bytes + 48):  # what ends each block is looked at by columns
            if bytes(view[column :: run.size]).count(byte) < len(rows):
                return []
        try:
            digits = unhexlify(b"".join([row[1] for row in rows]))
        except ValueError:  # one of them is not by us
            return []
        metas = cast(Iterator[Meta], _META.iter_unpack(digits))
        return [
            (b"", session, sequence, published, row[2])
            for (session, sequence, published), row in zip(metas, rows, strict=True)
        ]

    def _frame(self, data: bytes, position: int, end: int) -> int:
        eol = data.find(b"\r\n", position, position + _LINE_AND_END)
        if eol < 0:
            if end - position >= _LINE_AND_END:
                raise ProtocolError("A control line has no end; this is no NATS server.")
            return position
        first = data[position]
        if first not in (_M, _H):
            self._reply(data[position:eol])
            return eol + 2
        words = data[position:eol].split()
        start = eol + 2
        if first == _M:  # MSG <subject> <sid> [reply-to] <bytes>
            if not 4 <= len(words) <= 5 or words[0] != b"MSG":
                raise ProtocolError("A MSG line cannot be read.")
            body = start
        else:  # HMSG <subject> <sid> [reply-to] <header bytes> <total bytes>
            if not 5 <= len(words) <= 6 or words[0] != b"HMSG":
                raise ProtocolError("An HMSG line cannot be read.")
            body = start + _size(words[-2])
        return self._message(data, position, words[2], (start, body, start + _size(words[-1])))

    def _message(self, data: bytes, position: int, sid: bytes, places: tuple[int, int, int]) -> int:
        """Take a message; ``places`` are where its header block begins, its payload begins and its payload ends."""
        start, body, stop = places
        if body > stop:
            raise ProtocolError("An HMSG line has more header than message.")
        end, after = len(data), stop + 2
        if body > end:
            self._needed = body - position
            return position
        block, meta = data[start:body], None
        if len(block) == _OURS_BYTES and block.startswith(_OURS):
            meta = self._meta_at(block, len(_OURS))
        if meta is not None:
            head = data[position : start + len(_OURS)]
            self._learn(sid, head, f"48s4x{stop - body}s2x")
        if after > end:
            return self._begin((sid, meta, block), data, body, after - end)
        if meta is None:
            self._complete(sid, block, data[body:stop])
        else:
            session, sequence, published = meta
            self._add(sid, (b"", session, sequence, published, data[body:stop]))
        return after

    def _complete(self, address: bytes, block: bytes, payload: bytes) -> None:
        self._add_other(address, (block, payload))


_M, _H = b"MH"


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
