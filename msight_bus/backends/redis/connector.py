"""`RedisConnector`: connects with redis-py, takes the connection over, and translates failures into typed errors."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from msight_bus.backends.failover import (
    Failure,
    Meaning,
    connect_first,
    describe,
    is_unreachable,
    look_up,
    raise_warning,
    resolved,
)
from msight_bus.backends.pubsub.connection import Connection as OpenConnection
from msight_bus.backends.pubsub.connection import LeavingCallback, LostCallback, RefusedCallback
from msight_bus.backends.redis.connection import RedisConnection
from msight_bus.backends.redis.errors import find_reply, meaning_of
from msight_bus.backends.redis.health import REPLIES, Health, health_commands
from msight_bus.backends.redis.takeover import (
    BoundedParser,
    EncryptedConnection,
    ListParser,
    abort,
    check_redis_py,
    take_over,
    unread_error,
)
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError, quoted
from msight_bus.settings import BusSettings, HostPort
from msight_bus.settings.error_redaction import hide_secrets, quote_texts
from msight_bus.settings.tls import find_refused_certificate

DEFAULT_OUTPUT_LIMIT = 32 * 1024 * 1024
"""Redis's default ``client-output-buffer-limit pubsub`` (redis.conf), in bytes. Redis closes the connections of the subscribers
of a larger message."""

FRAME_BYTES = 1024
"""Bytes of protocol overhead for each message in a subscriber's output buffer."""

_PREFIX = "MSIGHT_REDIS_MESSAGE_BROKER_"
_PUBSUB_LIMIT = re.compile(rb"\bpubsub (\d{1,18})\b")


class _UnfitError(Exception):
    """The server answers, but messages published there do not reach the other servers."""


class _Opened(NamedTuple):
    """An open connection, and its server for logs and errors."""

    client: AbstractConnection
    where: str


class RedisConnector:
    """The connector to a Redis server, or to a node of a Redis Cluster, which distributes every message to all nodes.

    A bus begins with a random node, so that buses spread over the nodes, and later prefers the node that accepted last.
    """

    shares_connection = False

    def __init__(self, settings: BusSettings) -> None:
        check_redis_py()
        self._settings = settings
        self._redis = settings.redis
        self._max_bytes = min(DEFAULT_OUTPUT_LIMIT - FRAME_BYTES, settings.limits.max_message_bytes)
        self._nodes = list(self._redis.nodes)
        random.shuffle(self._nodes)
        self._health = Health(self._redis.use_cluster, len(self._nodes))
        self._alone = True
        self._open_at: WeakKeyDictionary[OpenConnection, str] = WeakKeyDictionary()

    @property
    def announces(self) -> bool:
        """Whether messages carry sequences: raw payloads do not."""
        return self._redis.wire != "raw"

    @property
    def refusal_patience(self) -> float:
        """Time in seconds for which a refusal on reconnecting is retried; 0 where credentials and certificates cannot change."""
        changes = self._redis.has_secret_files or self._redis.encrypted
        return self._settings.limits.refusal_patience if changes else 0.0

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of Redis pub/sub; ``max_message_bytes`` is known once a publishing connection was opened."""
        return Capabilities(
            routing="broadcast",
            load_balancing=False,
            native_headers=False,
            max_message_bytes=self._max_bytes,
        )

    @property
    def where(self) -> str:
        """Redis and its addresses, for logs and errors."""
        return f"Redis at {self._redis.unix_socket_path or ', '.join(map(str, self._redis.nodes))}"

    async def connect(
        self, on_lost: LostCallback, *, publishes: bool, on_refused: RefusedCallback, on_leaving: LeavingCallback
    ) -> RedisConnection:
        """Open a connection (`Connector.connect`).

        A publishing connection also reads the server's limits and checks the server's health periodically.
        """
        opened = await self._first(self._open_and_ask if publishes else self._open)
        if publishes and self._redis.use_cluster:
            self._gather_at(opened.where)
        transport, leftover, release = take_over(opened.client)

        def lost(connection: OpenConnection, reason: BusError) -> None:
            release()
            on_lost(connection, reason)

        limits = self._settings.limits
        connection = RedisConnection(
            transport,
            lost,
            raw=self._redis.wire == "raw",
            max_bytes=self._max_bytes,
            max_received=limits.max_message_bytes,
        )
        connection.take_over(leftover)
        if publishes:
            connection.alone = self._alone
            connection.watch_health(self._health, limits.ping_interval, partial(self._leave, opened.where))
        self._open_at[connection] = opened.where
        return connection

    def _gather_at(self, where: str) -> None:
        """Close subscribing connections to other nodes, so that they reconnect to this one, whose health is checked."""
        for connection, there in list(self._open_at.items()):
            if there != where and not connection.gone.done():
                connection.fail(
                    ConnectionLostError(f"The publishing connection failed over from Redis at {there} to {where}.")
                )

    def _leave(self, where: str, problem: str) -> None:
        """Close all connections to a server that cannot be used: a subscribing connection cannot check the server itself."""
        for connection, there in list(self._open_at.items()):
            if there == where and not connection.gone.done():
                connection.fail(self._unfit(where, problem))

    def _unfit(self, where: str, problem: str) -> ConnectionLostError:
        return ConnectionLostError(f"Redis at {where} cannot be used: {problem}. {self._variables()}.")

    # -- one connection

    async def _open(
        self, kind: type[AbstractConnection], options: dict[str, Any], parser: type[BoundedParser] = BoundedParser
    ) -> AbstractConnection:
        connection = kind(**options, parser_class=parser)
        try:
            await connection.connect()
            await self._check_health(connection)
        except BaseException as failure:
            await abort(connection)
            unread = unread_error(connection)
            if unread and is_unreachable(failure):
                raise ResponseError(unread) from None
            raise
        return connection

    async def _open_and_ask(self, kind: type[AbstractConnection], options: dict[str, Any]) -> AbstractConnection:
        connection = await self._open(kind, options)
        try:
            self._learn(await self._output_limit(connection))
        except BaseException:
            await abort(connection)
            raise
        return connection

    async def _check_health(self, connection: AbstractConnection) -> None:
        """Check that the server can be used. A command that the user is not permitted to run gives no information.

        Raises:
            ResponseError: the server refused the credentials.
            _UnfitError: the server cannot be used.
        """
        await connection.send_packed_command(health_commands())
        replies: list[object] = []
        for _ in range(REPLIES):
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                if meaning_of(find_reply(error) or "") is Meaning.CREDENTIALS:
                    raise
                replies.append(error)
        self._alone = self._health.is_alone(replies)
        problem = self._health.problem(replies)
        if problem is not None:
            raise _UnfitError(problem)

    async def _output_limit(self, connection: AbstractConnection) -> object:
        reply = await self._answer(connection, "CONFIG", "GET", "client-output-buffer-limit")
        return reply[1] if isinstance(reply, list) and len(reply) > 1 else None

    async def _answer(self, connection: AbstractConnection, *command: str) -> object:
        """Return the reply to a command; ``None`` if the user is not permitted to run the command."""
        try:
            await connection.send_command(*command)
            return await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            if meaning_of(find_reply(error) or "") is Meaning.CREDENTIALS:
                raise
            return None

    async def ask(self, *command: str) -> object:
        """Run one command on a new connection; return the reply, ``None`` if the user is not permitted to run it.

        Raises:
            BusError: as `connect`.
        """
        opened = await self._first(partial(self._open, parser=ListParser))
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout):
                return await self._answer(opened.client, *command)
        finally:
            await abort(opened.client)

    def _learn(self, output_limit: object) -> None:
        """Derive the maximum message size from ``client-output-buffer-limit``: the bytes that Redis buffers for a subscriber."""
        found = _PUBSUB_LIMIT.search(output_limit if isinstance(output_limit, bytes) else b"")
        limit = int(found[1]) if found else DEFAULT_OUTPUT_LIMIT
        limit = limit or 512 * 1024 * 1024  # 0 is unlimited; proto-max-bulk-len is 512 MB by default
        self._max_bytes = min(limit - FRAME_BYTES, self._settings.limits.max_message_bytes)

    # -- which server

    async def _first(self, open_one: Callable[[type[AbstractConnection], dict[str, Any]], Any]) -> _Opened:
        """Connect with ``open_one`` to the first server that accepts, within ``connect_timeout``.

        Raises:
            ConfigError: a file with the password or a certificate cannot be used.
            BusError: as `connect_first`.
        """
        redis = self._redis
        within = self._settings.limits.connect_timeout
        password = redis.password.get_secret_value() if redis.password else None
        context = redis.ssl_context()
        options: dict[str, Any] = {
            "db": redis.db,
            "username": redis.username,
            "password": password,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0, supported_errors=()),
            "socket_connect_timeout": within,
            "socket_timeout": within,
            "health_check_interval": 0,
        }

        async def attempt(server: HostPort, address: str) -> _Opened:
            if redis.unix_socket_path:
                client = await open_one(UnixDomainSocketConnection, {"path": address, **options})
                return _Opened(client, address)
            there = {"host": address, "port": server.port, **options}
            if context is None:
                client = await open_one(Connection, there)
            else:
                name = server.host.rstrip(".")  # names in certificates have no trailing dot
                client = await open_one(EncryptedConnection, {"context": context, "server_hostname": name, **there})
            self._nodes.remove(server)
            self._nodes.insert(0, server)
            return _Opened(client, resolved(server, address))

        async def addresses(server: HostPort) -> Sequence[str]:
            path = redis.unix_socket_path
            return [path] if path else await look_up(server.host, server.port)

        def explain(server: HostPort, address: str | None, error: Exception, share: float) -> Failure:
            hide_secrets(error, [password] if password else [])
            quote_texts(error)
            return self._explain(redis.unix_socket_path or resolved(server, address), error, share)

        servers = self._nodes[:1] if redis.unix_socket_path else list(self._nodes)
        return await connect_first(servers, within, addresses=addresses, attempt=attempt, explain=explain)

    def _explain(self, where: str, error: Exception, share: float) -> Failure:
        raise_warning(error, f"Redis at {where}")
        reply = find_reply(error)
        if reply is not None and (meaning := meaning_of(reply)) is not Meaning.TEMPORARY:
            what = "the credentials" if meaning is Meaning.CREDENTIALS else "a permission"
            text = quoted(reply)
            refusal = f"Redis at {where} refused {what} ({text}); check {_PREFIX}USERNAME and _PASSWORD."
            return Failure(AuthenticationError(refusal), f"{where} ({text})", answered=True)
        if isinstance(error, _UnfitError):
            return Failure(self._unfit(where, str(error)), f"{where} ({error})", answered=True)
        text = quoted(reply) if reply is not None else describe(error, share)
        brief = f"{where} ({text})"
        if find_refused_certificate(error) is not None:
            refusal = (
                f"TLS with Redis at {where} was refused over a certificate: {text}; check the {_PREFIX}TLS_ variables."
            )
            return Failure(AuthenticationError(refusal), brief, answered=True)
        if reply is not None and ("DB index" in reply or "SELECT" in reply):
            text = f"Redis at {where} does not have the database {self._redis.db}: {text}. Check {_PREFIX}DB."
            return Failure(ConnectionLostError(text), brief, answered=True)
        if reply is not None or (not is_unreachable(error) and not isinstance(error, TimeoutError)):
            return Failure(
                ConnectionLostError(f"Redis at {where} cannot be used now: {text}. {self._variables()}."),
                brief,
                answered=reply is not None,
            )
        return Failure(
            ConnectionLostError(
                f"Redis at {where} cannot be reached: {text}. {self._variables()}, or start a server with `msight-bus up redis`."
            ),
            brief,
            answered=False,
        )

    def _variables(self) -> str:
        """Return the sentence that names the variables of the address."""
        if self._redis.unix_socket_path:
            return f"Check {_PREFIX}UNIX_SOCKET_PATH"
        if self._redis.use_cluster and self._redis.cluster_nodes:
            return f"Check {_PREFIX}CLUSTER_NODES"
        return f"Check {_PREFIX}HOST and _PORT"
