"""Opening connections to Redis with redis-py. The only module that touches the client's private attributes."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError as RedisAuthenticationError
from redis.exceptions import AuthorizationError, NoPermissionError, RedisError, ResponseError

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.link import Link
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveLink
from msight_bus.adapters.redis.link import PublishLink, SubscribeLink
from msight_bus.adapters.turns import in_turn
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.settings import BusSettings
from msight_bus.settings.discretion import chain, hide_secrets
from msight_bus.settings.tls import find_refused_certificate

DEFAULT_OUTPUT_LIMIT = 32 * 1024 * 1024
"""Redis's default ``client-output-buffer-limit pubsub``; a larger message cuts its own subscribers (redis.conf)."""

FRAME_BYTES = 1024
"""Room for the protocol around a message in the subscriber's output buffer."""

_PUBSUB_LIMIT = re.compile(rb"\bpubsub (\d{1,18})\b")

_REFUSALS = ("WRONGPASS", "NOAUTH", "NOPERM")

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


class RedisDialect:
    """Connections to one Redis, or to the nodes of a cluster, where any node passes a message on to all."""

    shares_connection = False

    def __init__(self, settings: BusSettings, stamp: Stamp) -> None:
        self._settings = settings
        self._redis = settings.redis
        self._stamp = stamp
        self._max_bytes = min(DEFAULT_OUTPUT_LIMIT - FRAME_BYTES, settings.limits.max_message_bytes)

    @property
    def announces(self) -> bool:
        """Raw payloads have no sequences."""
        return self._redis.wire != "raw"

    @property
    def capabilities(self) -> Capabilities:
        """What Redis pub/sub does."""
        return Capabilities(
            persistence=False,
            delivery="best-effort",
            routing="broadcast",
            load_balancing=False,
            replay=False,
            acknowledgement=False,
            native_headers=False,
            tail_loss=False,
            max_message_bytes=self._max_bytes,
        )

    async def connect_publisher(self, owner: Owner) -> LiveLink:
        """Open a connection that publishes, and learn what it may send."""
        client = await self._open()
        try:
            limit = await self._output_limit(client)
        except BaseException:
            await client.disconnect(nowait=True)
            raise
        self._max_bytes = min(limit - FRAME_BYTES, self._settings.limits.max_message_bytes)
        return self._take_over(
            client,
            owner,
            lambda transport, on_lost: PublishLink(
                transport, owner, on_lost, self._stamp, raw=self._redis.wire == "raw", max_bytes=self._max_bytes
            ),
        )

    async def connect_subscriber(self, owner: Owner) -> LiveLink:
        """Open a connection that subscribes."""
        return self._take_over(await self._open(), owner, SubscribeLink)

    async def _open(self) -> AbstractConnection:
        error: BusError | None = None
        for connection, within in in_turn(self._candidates(), self._settings.limits.connect_timeout):
            try:
                async with asyncio.timeout(within):
                    await connection.connect()
            except asyncio.CancelledError:
                await connection.disconnect(nowait=True)
                raise
            except Exception as failure:  # also what the client stumbles over when a peer talks nonsense
                await connection.disconnect(nowait=True)
                error = self._explain(failure, connection)
                if isinstance(error, AuthenticationError):
                    raise error from failure
                error.__cause__ = failure
            else:
                return connection
        raise error or ConnectionLostError("No Redis node is configured.")

    def _candidates(self) -> list[AbstractConnection]:
        redis = self._redis
        options: dict[str, Any] = {
            "db": redis.db,
            "username": redis.username,
            "password": redis.password.get_secret_value() if redis.password else None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": self._settings.limits.connect_timeout,
            "socket_timeout": self._settings.limits.connect_timeout,
            "health_check_interval": 0,
            "parser_class": _Parser,
        }
        if redis.unix_socket_path:
            return [UnixDomainSocketConnection(path=redis.unix_socket_path, **options)]
        if not redis.tls.enabled:
            return [Connection(host=host, port=port, **options) for host, port in redis.nodes]
        return [self._encrypted(SSLConnection(host=host, port=port, **options)) for host, port in redis.nodes]

    def _encrypted(self, connection: SSLConnection) -> SSLConnection:
        """With our own context: redis-py's would trust the system's authorities besides the one that was named."""
        connection.ssl_context.context = self._redis.tls.context()
        return connection

    def _explain(self, error: Exception, connection: AbstractConnection) -> BusError:
        where = (
            getattr(connection, "path", None) or f"{getattr(connection, 'host', '')}:{getattr(connection, 'port', '')}"
        )
        if self._redis.password is not None:
            hide_secrets(error, [self._redis.password.get_secret_value()])
        text = str(error) or "no answer"
        causes = chain(error)  # redis-py buries the real one, on a Unix socket and behind TLS
        refused = (RedisAuthenticationError, AuthorizationError, NoPermissionError)
        if any(isinstance(cause, refused) or str(cause).startswith(_REFUSALS) for cause in causes):
            return AuthenticationError(
                f"Redis at {where} refused the credentials ({text}); check MSIGHT_REDIS_MESSAGE_BROKER_USERNAME and _PASSWORD."
            )
        if find_refused_certificate(error) is not None:
            return AuthenticationError(
                f"TLS with Redis at {where} was refused over a certificate: {text}; check the "
                "MSIGHT_REDIS_MESSAGE_BROKER_TLS_ variables."
            )
        return ConnectionLostError(
            f"Redis at {where} cannot be reached: {text}. Is it running? `msight-bus up redis` starts one; "
            "MSIGHT_REDIS_MESSAGE_BROKER_HOST and _PORT say where it is."
        )

    async def _output_limit(self, client: AbstractConnection) -> int:
        """Bytes that Redis buffers for a subscriber before it cuts it; the default if we may not ask."""
        try:
            await client.send_command("CONFIG", "GET", "client-output-buffer-limit")
            reply = await client.read_response(disable_decoding=True)
        except ResponseError as error:
            if str(error).startswith("NOAUTH"):
                raise self._explain(error, client) from error
            return DEFAULT_OUTPUT_LIMIT  # not permitted to ask
        except (RedisError, OSError) as error:
            raise self._explain(error, client) from error
        value = reply[1] if isinstance(reply, list) and len(reply) > 1 else b""
        found = _PUBSUB_LIMIT.search(value if isinstance(value, bytes) else b"")
        hard = int(found[1]) if found else DEFAULT_OUTPUT_LIMIT
        return hard or 512 * 1024 * 1024  # 0 is unlimited; proto-max-bulk-len is 512 MB by default

    def _take_over(self, client: AbstractConnection, owner: Owner, make: Any) -> LiveLink:
        reader: Any = client._reader
        writer: Any = client._writer

        def on_lost(link: Link, reason: BusError) -> None:
            client._reader = client._writer = None  # closed by us, so the client's finaliser need not warn
            owner.lost(link, reason)

        link: LiveLink = make(writer.transport, on_lost)
        leftover = bytes(reader._buffer)
        reader._buffer.clear()
        link.take_over(leftover)
        return link
