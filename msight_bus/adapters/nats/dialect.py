"""Opening connections to NATS with nats-py. The only module that touches the client's private attributes."""

from __future__ import annotations

import asyncio
import random
from math import ceil
from typing import Any

import nats.errors
from nats.aio.client import Client, RawCredentials

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.link import Link
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.nats.link import NatsLink
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.settings import BusSettings, NatsServer

DEFAULT_MAX_PAYLOAD = 1024 * 1024


class _Client(Client):
    """Refuses a server that would have the credentials in the clear.

    nats-py uses TLS only if the server's INFO asks for it, whatever the user wants; INFO comes before CONNECT.
    """

    wants_tls = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.wants_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise nats.errors.Error("the server offers no TLS, and TLS was asked for")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class NatsDialect:
    """Connections to one server, or to any server of a cluster."""

    shares_connection = True

    def __init__(self, settings: BusSettings, stamp: Stamp) -> None:
        self._settings = settings
        self._nats = settings.nats
        self._stamp = stamp
        self._max_payload = DEFAULT_MAX_PAYLOAD

    @property
    def capabilities(self) -> Capabilities:
        """What NATS core does."""
        return Capabilities(
            persistence=False,
            delivery="best-effort",
            routing="broadcast or queue group",
            load_balancing=True,
            replay=False,
            acknowledgement=False,
            native_headers=True,
            tail_loss=False,
            max_message_bytes=min(self._max_payload, self._settings.limits.max_message_bytes),
        )

    async def connect_publisher(self, owner: Owner) -> NatsLink:
        """Open a connection; NATS publishes and subscribes on the same."""
        client = await self._open()
        self._learn(client.max_payload)
        return await self._take_over(client, owner)

    async def connect_subscriber(self, owner: Owner) -> NatsLink:
        """Open a connection of the same kind, for a subscription that may be paused."""
        return await self.connect_publisher(owner)

    def _learn(self, max_payload: int) -> None:
        self._max_payload = max_payload

    async def _open(self) -> Client:
        servers = list(self._nats.servers)
        random.shuffle(servers)
        error: BusError | None = None
        for server in servers:
            client = _Client()
            try:
                await self._connect(client, server)
            except asyncio.CancelledError:
                _abandon(client)
                raise
            except (nats.errors.Error, OSError, TimeoutError) as failure:
                _abandon(client)
                error = self._explain(failure)
                if isinstance(error, AuthenticationError):
                    raise error from failure
                error.__cause__ = failure
            else:
                return client
        raise error or ConnectionLostError("No NATS server is configured.")

    async def _connect(self, client: _Client, server: NatsServer) -> None:
        settings = self._nats
        context = settings.tls.context()
        client.wants_tls = context is not None

        async def give_up(error: Exception) -> None:
            raise error  # the client would try again; the supervisor does that, with a new client

        options: dict[str, Any] = {}
        if context is not None:
            options["tls"] = context
            options["tls_hostname"] = server.host
        if settings.username is not None:
            options["user"] = settings.username
        for option, secret in (("password", settings.password), ("token", settings.token)):
            if secret is not None:
                options[option] = secret.get_secret_value()
        seed = settings.nkey_seed.get_secret_value() if settings.nkey_seed else None
        if settings.user_credentials is not None:
            options["user_credentials"] = settings.user_credentials
        elif settings.user_jwt is not None and seed is not None:
            options["user_credentials"] = RawCredentials(_credentials(settings.user_jwt.get_secret_value(), seed))
        elif seed is not None:
            options["nkeys_seed_str"] = seed
        await client.connect(
            servers=[server.get_secret_url()],
            error_cb=give_up,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=ceil(self._settings.limits.connect_timeout),
            name=self._settings.edge_device_name,
            **options,
        )
        if not client.is_connected:  # the server hung up where its PONG was due; the client does not mind
            raise nats.errors.Error("the server closed the connection during the handshake")

    def _explain(self, error: Exception) -> BusError:
        where = ", ".join(str(server) for server in self._nats.servers)
        text = str(error) or type(error).__name__
        lowered = text.lower()
        if "authorization" in lowered or "authentication" in lowered:
            return AuthenticationError(
                f"NATS at {where} refused the credentials ({text}); check MSIGHT_NATS_USERNAME and _PASSWORD, _TOKEN, "
                "_NKEY_SEED, _USER_JWT or _USER_CREDENTIALS, whichever the server expects."
            )
        if "tls was asked for" in lowered or "certificate" in lowered:
            return AuthenticationError(f"NATS at {where} was refused before any credential was sent: {text}")
        return ConnectionLostError(
            f"NATS at {where} cannot be reached: {text}. Is it running? `msight-bus up nats` starts one; "
            "MSIGHT_NATS_SERVERS says where it is."
        )

    async def _take_over(self, client: Client, owner: Owner) -> NatsLink:
        """End the client's own tasks and give its transport to our link."""
        tasks: list[asyncio.Task[Any]] = [
            task
            for task in (client._reading_task, client._ping_interval_task, client._flusher_task)
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        transport: Any = client._transport
        reader, writer = transport._io_reader, transport._io_writer
        leftover = bytes(client._ps.buf) + bytes(reader._buffer)
        reader._buffer.clear()

        def on_lost(link: Link, reason: BusError) -> None:
            client._transport = None  # keeps the writer alive until the transport is closed
            owner.lost(link, reason)

        link = NatsLink(
            writer.transport,
            owner,
            on_lost,
            self._stamp,
            max_payload=self.capabilities.max_message_bytes,
            on_max_payload=self._learn,
        )
        link.take_over(leftover)
        return link


def _abandon(client: Client) -> None:
    """Close what a failed connect has left open."""
    for task in (client._reading_task, client._ping_interval_task, client._flusher_task):
        if task is not None:
            task.cancel()
    if client._transport is not None:
        client._transport.close()


def _credentials(jwt: str, seed: str) -> str:
    """A credentials file's text, as `nsc` writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
