"""Open connections to Redis with redis-py and take them over: addresses, credentials, TLS, and what a failure means."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError as RedisAuthenticationError
from redis.exceptions import AuthorizationError, NoPermissionError, ResponseError

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveLink
from msight_bus.adapters.redis.link import PublishLink, SubscribeLink
from msight_bus.adapters.redis.takeover import BoundedParser, check_redis_py, take_over
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

_REFUSAL_TYPES = (RedisAuthenticationError, AuthorizationError, NoPermissionError)
_REFUSALS = ("WRONGPASS", "NOAUTH", "NOPERM")
_PUBSUB_LIMIT = re.compile(rb"\bpubsub (\d{1,18})\b")


class EncryptedConnection(SSLConnection):
    """With a context of our own: redis-py's would trust the system's authorities besides the one that was named."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context


class RedisConnector:
    """Connections to one Redis, or to the nodes of a cluster, where any node passes a message on to all."""

    shares_connection = False

    def __init__(self, settings: BusSettings, stamp: Stamp) -> None:
        check_redis_py()
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

    def _take_over(
        self, client: AbstractConnection, owner: Owner, make: Callable[..., PublishLink | SubscribeLink]
    ) -> LiveLink:
        transport, leftover, release = take_over(client)

        def on_lost(link: LiveLink, reason: BusError) -> None:
            release()
            owner.lost(link, reason)

        link = make(transport, on_lost)
        link.take_over(leftover)
        return link

    async def _open(self, kind: type[AbstractConnection], options: dict[str, Any]) -> AbstractConnection:
        connection = kind(**options, parser_class=BoundedParser)
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

    def _learn(self, output_limit: object) -> None:
        """Take the value of ``client-output-buffer-limit``: bytes that Redis buffers for a subscriber before it cuts it."""
        found = _PUBSUB_LIMIT.search(output_limit if isinstance(output_limit, bytes) else b"")
        limit = int(found[1]) if found else DEFAULT_OUTPUT_LIMIT
        limit = limit or 512 * 1024 * 1024  # 0 is unlimited; proto-max-bulk-len is 512 MB by default
        self._max_bytes = min(limit - FRAME_BYTES, self._settings.limits.max_message_bytes)

    async def _first(
        self, attempt: Callable[[type[AbstractConnection], dict[str, Any]], Awaitable[AbstractConnection]]
    ) -> AbstractConnection:
        """What ``attempt`` makes of the first node that it reaches."""
        error: BusError | None = None
        for (kind, options), within in in_turn(self._candidates(), self._settings.limits.connect_timeout):
            try:
                async with asyncio.timeout(within):
                    return await attempt(kind, options)
            except Exception as failure:  # also what the client stumbles over when a peer talks nonsense
                error = self._explain(failure, options.get("path") or f"{options['host']}:{options['port']}")
                if isinstance(error, AuthenticationError):
                    raise error from failure
                error.__cause__ = failure
        raise error or ConnectionLostError("No Redis node is configured.")

    def _candidates(self) -> list[tuple[type[AbstractConnection], dict[str, Any]]]:
        redis = self._redis
        options: dict[str, Any] = {
            "db": redis.db,
            "username": redis.username,
            "password": redis.password.get_secret_value() if redis.password else None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0, supported_errors=()),
            "socket_connect_timeout": self._settings.limits.connect_timeout,
            "socket_timeout": self._settings.limits.connect_timeout,
            "health_check_interval": 0,
        }
        if redis.unix_socket_path:
            return [(UnixDomainSocketConnection, {"path": redis.unix_socket_path, **options})]
        nodes = [{"host": host, "port": port, **options} for host, port in redis.nodes]
        if not redis.tls.enabled:
            return [(Connection, node) for node in nodes]
        return [(EncryptedConnection, {"context": redis.tls.context(), **node}) for node in nodes]

    def _explain(self, error: Exception, where: str) -> BusError:
        if self._redis.password is not None:
            hide_secrets(error, [self._redis.password.get_secret_value()])
        text = str(error).rstrip(".") or "no answer"
        causes = chain(error)  # redis-py buries the real one, on a Unix socket and behind TLS
        if any(isinstance(cause, _REFUSAL_TYPES) or str(cause).startswith(_REFUSALS) for cause in causes):
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
