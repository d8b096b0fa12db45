"""A publisher on a plain socket, with any session and sequence."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec

from tests.support.brokers import Backend

_PREFIX = struct.Struct(">4sIQQQ")
_PUBLISHED_AT = 1_700_000_000 * 10**9
_WITHIN = 20.0


class RawPublisher:
    """Writes envelopes on its own connection."""

    def __init__(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._kind = kind
        self._reader = reader
        self._writer = writer

    def _command(self, topic: str, session: int, sequence: int, payload: bytes) -> bytes:
        name = topic.encode()
        if self._kind == "redis":
            data = _PREFIX.pack(b"\xc1MB\x01", 0, session, sequence, _PUBLISHED_AT) + payload
            return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(data), data)
        block = b"NATS/1.0\r\nmsight: %016x%016x%016x\r\n\r\n" % (session, sequence, _PUBLISHED_AT)
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (name, len(block), len(block) + len(payload), block, payload)

    async def send(self, topic: str, stamps: Iterable[tuple[int, int]], payload: bytes = b"x") -> None:
        """Publish one message per (session, sequence); return when the broker has received all."""
        commands = [self._command(topic, session, sequence, payload) for session, sequence in stamps]
        self._writer.write(b"".join(commands))
        async with asyncio.timeout(_WITHIN):
            if self._kind == "redis":
                for _ in commands:
                    await self._reader.readuntil(b"\r\n")
            else:
                self._writer.write(b"PING\r\n")
                await self._reader.readuntil(b"PONG\r\n")

    async def announce(self, topic: str, session: int, highest: int) -> None:
        """Announce ``highest`` as the session's last sequence on ``topic``."""
        await self.send("_msight.seq", [(session, 1)], msgspec.msgpack.encode((session, {topic: highest})))


@asynccontextmanager
async def raw_publisher(backend: Backend) -> AsyncIterator[RawPublisher]:
    """Open a connection to the backend's broker, Redis or NATS."""
    if backend.name == "redis":
        port = int(backend.env["MSIGHT_REDIS_MESSAGE_BROKER_PORT"])
    else:
        port = urlsplit(backend.env["MSIGHT_NATS_SERVERS"].strip("[]'\"")).port or 4222
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if backend.name == "nats":
            writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":false}\r\n')
        yield RawPublisher(backend.name, reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
