"""Take over a connection that redis-py has opened. The only module that uses private attributes of redis-py."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, DefaultParser, SSLConnection

from msight_bus.backends.client_library import ClientLibrary

REDIS_PY = ClientLibrary("redis", oldest="8.0", newest="8.1.0")

_LONGEST_REPLY = 1024 * 1024
"""Maximum bytes of a reply while connecting; the longest expected reply, to CONFIG GET, has a few hundred bytes."""

_LONG_ARRAY = re.compile(rb"(?:^|\n)[*%~>]\d{4}")


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]
    """A hiredis parser that limits the size of replies while connecting.

    hiredis alone would buffer a reply of any size, and allocate a list of any length that an array header announces.
    """

    _reply = b""

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._reply = b""
        return await super().read_response(disable_decoding, push_request)

    async def read_from_socket(self) -> bool:
        data: bytes = await self._stream.read(self._read_size)
        self._reply += data
        if not data:
            raise ConnectionError("the server closed the connection")
        if len(self._reply) > _LONGEST_REPLY or _LONG_ARRAY.search(self._reply):
            raise ConnectionError(
                f"a reply exceeds {_LONGEST_REPLY} bytes or 999 elements; the peer is not a Redis server"
            )
        self._reader.feed(data)
        return True


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
    """Return the error reply that was received and not read, because a write failed first; ``""`` without one."""
    parser: Any = connection._parser
    reader = parser._stream
    unread = bytes(reader._buffer) if reader is not None else b""
    line, end, _ = unread.partition(b"\r\n")
    return line[1:].decode("ascii", "replace") if end and line.startswith(b"-") else ""


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
