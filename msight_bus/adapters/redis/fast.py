"""redis-py opens a connection, then its transport is ours. The only module that touches redis-py's private attributes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveLink
from msight_bus.adapters.redis.dialect import RedisDialect
from msight_bus.adapters.redis.link import PublishLink, SubscribeLink
from msight_bus.errors import BusError

_LONGEST_REPLY = 1024 * 1024
"""Bytes of one reply while connecting; the longest is that to CONFIG GET, some hundred bytes."""

_LONG_ARRAY = re.compile(rb"(?:^|\n)[*%~>]\d{4}")


class _Parser(_AsyncHiredisParser):
    """Refuses a reply without measure: nothing of what is asked while connecting has a long answer.

    hiredis would keep an endless one, and make a list of as many entries as an array announces.
    """

    _reply = b""

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._reply = b""
        return await super().read_response(disable_decoding, push_request)

    async def read_from_socket(self) -> bool:
        stream: Any = self._stream
        reader: Any = self._reader
        data = await stream.read(self._read_size)
        self._reply += data
        if not data:
            raise ConnectionError("the server closed the connection")
        if len(self._reply) > _LONGEST_REPLY or _LONG_ARRAY.search(self._reply):
            raise ConnectionError("a reply without measure; this is no Redis server")
        reader.feed(data)
        return True


class Transport(RedisDialect):
    """Our own RESP2 on connections that redis-py has opened (MSIGHT_TRANSPORT=fast)."""

    async def connect_publisher(self, owner: Owner) -> LiveLink:
        """Open a connection that publishes, and learn what it may send."""
        client = await self._first(self._open_and_ask)
        return self._take_over(
            client,
            owner,
            lambda transport, on_lost: PublishLink(
                transport, owner, on_lost, self._stamp, raw=self._redis.wire == "raw", max_bytes=self._max_bytes
            ),
        )

    async def connect_subscriber(self, owner: Owner) -> LiveLink:
        """Open a connection that subscribes."""
        return self._take_over(await self._first(self._open), owner, SubscribeLink)

    async def _open(self, kind: type[AbstractConnection], options: dict[str, Any]) -> AbstractConnection:
        connection = kind(**options, parser_class=_Parser)
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _open_and_ask(self, kind: type[AbstractConnection], options: dict[str, Any]) -> AbstractConnection:
        connection = await self._open(kind, options)
        try:
            self._learn(await self._output_limit(connection))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _output_limit(self, connection: AbstractConnection) -> object:
        try:
            await connection.send_command("CONFIG", "GET", "client-output-buffer-limit")
            reply = await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            if str(error).startswith("NOAUTH"):
                raise
            return None  # not permitted to ask
        return reply[1] if isinstance(reply, list) and len(reply) > 1 else None

    def _take_over(
        self, client: AbstractConnection, owner: Owner, make: Callable[..., PublishLink | SubscribeLink]
    ) -> LiveLink:
        reader: Any = client._reader
        writer: Any = client._writer

        def on_lost(link: LiveLink, reason: BusError) -> None:
            client._reader = client._writer = None  # closed by us, so the client's finaliser need not warn
            owner.lost(link, reason)

        link = make(writer.transport, on_lost)
        leftover = bytes(reader._buffer)
        reader._buffer.clear()
        link.take_over(leftover)
        return link
