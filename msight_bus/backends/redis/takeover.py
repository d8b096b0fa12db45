"""Take over a connection that redis-py has opened. The only module that uses private attributes of redis-py."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, DefaultParser, SSLConnection

from msight_bus.backends.client_library import ClientLibrary

REDIS_PY = ClientLibrary("redis", oldest="8.0", newest="8.1.0")

_LONGEST_HEADER = 16
"""Bytes of the largest array header that is looked for."""


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]
    """A hiredis parser that limits the size of replies while connecting.

    hiredis alone would buffer a reply of any size, and allocate a list of any length that an array header announces. The longest
    expected reply, to CONFIG GET, has a few hundred bytes.
    """

    _most_bytes, _most_digits = 1024 * 1024, 3

    _received, _recent = 0, b""

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._received, self._recent = 0, b"\n"
        return await super().read_response(disable_decoding, push_request)

    async def read_from_socket(self) -> bool:
        data: bytes = await self._stream.read(self._read_size)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._received += len(data)
        self._recent = self._recent[-_LONGEST_HEADER:] + data
        too_long = rb"\n[*%%~>]\d{%d}" % (self._most_digits + 1)
        if self._received > self._most_bytes or re.search(too_long, self._recent):
            most = f"{self._most_bytes} bytes or {10**self._most_digits - 1} elements"
            raise ConnectionError(f"a reply exceeds {most}; the peer is not a Redis server")
        self._reader.feed(data)
        return True


class ListParser(BoundedParser):
    """A parser for replies that list the channels of a server."""

    _most_bytes, _most_digits = 32 * 1024 * 1024, 6


class EncryptedConnection(SSLConnection):
    """A TLS connection to one address of a host, with the bus's own SSL context.

    redis-py's context would trust the system's certificate authorities in addition to the configured one, and would verify the
    certificate for the address instead of the host name.
    """

    def __init__(self, *, context: ssl.SSLContext, server_hostname: str, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context
        self._server_hostname = server_hostname

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._server_hostname}


def check_redis_py() -> None:
    """Log a WARNING if the installed redis-py is not a tested version.

    Raises:
        BusError: redis-py lacks a private attribute that this module uses.
    """
    REDIS_PY.check(
        (Connection(), ("_reader", "_writer", "_connection_arguments")),
        (DefaultParser(socket_read_size=1), ("_stream", "_reader", "_read_size", "read_from_socket")),
    )


def unread_error(connection: AbstractConnection) -> str:
    """Return the error reply that was received and not read, because a write failed first; ``""`` if there is none."""
    parser: Any = connection._parser
    reader = parser._stream
    unread = bytes(reader._buffer) if reader is not None else b""
    line, end, _ = unread.partition(b"\r\n")
    return line[1:].decode("ascii", "replace") if end and line.startswith(b"-") else ""


async def abort(connection: AbstractConnection) -> None:
    """Close a client's connection at once.

    redis-py closes a TLS connection gracefully, without awaiting the end: on uvloop, closing the event loop meanwhile raises an
    ``OSError`` (EBUSY).
    """
    writer: Any = connection._writer
    if writer is not None:
        writer.transport.abort()
    await connection.disconnect(nowait=True)


def take_over(connection: AbstractConnection) -> tuple[Any, bytes, Callable[[], None]]:
    """Take the transport of an open connection.

    Returns:
        The transport, the bytes that redis-py has read and not parsed, and a function to call once the transport is closed.
    """
    reader: Any = connection._reader
    writer: Any = connection._writer
    leftover = bytes(reader._buffer)
    reader._buffer.clear()

    def release() -> None:
        connection._reader = connection._writer = (
            None  # the transport is closed: prevents a ResourceWarning of redis-py
        )

    return writer.transport, leftover, release
