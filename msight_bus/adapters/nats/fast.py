"""nats-py opens a connection, then its transport is ours. The only module that touches nats-py's private attributes."""

from __future__ import annotations

import asyncio
from typing import Any

from nats.aio.client import Client

from msight_bus.adapters.link import Link
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveLink
from msight_bus.adapters.nats.dialect import NatsDialect, NoTlsError
from msight_bus.adapters.nats.link import NatsLink
from msight_bus.errors import BusError
from msight_bus.settings import NatsServer


class _Client(Client):
    """Refuses a server that would have the credentials in the clear.

    nats-py uses TLS only if the server's INFO asks for it, whatever the user wants; INFO comes before CONNECT.
    """

    wants_tls = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.wants_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise NoTlsError("the server offers no TLS, and TLS was asked for")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class Transport(NatsDialect):
    """Our own code for the NATS protocol on connections that nats-py has opened (MSIGHT_TRANSPORT=fast)."""

    async def _connect(self, owner: Owner, server: NatsServer, credentials: dict[str, Any]) -> LiveLink:
        async def give_up(error: Exception) -> None:
            raise error  # the client would try again

        client = _Client()
        context = self._nats.tls.context()
        client.wants_tls = context is not None
        try:
            await self._open(client, server, context, error_cb=give_up, **credentials)
            return await self._take_over(client, owner)
        except BaseException as failure:
            _abandon(client)
            _add_reason(failure, client)
            raise

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


def _add_reason(failure: BaseException, client: Client) -> None:
    """Say why the connection ended, where the client says only that it did: TLS 1.3 refuses after the handshake."""
    reader: asyncio.StreamReader | None = getattr(client._transport, "_io_reader", None)
    reason = reader.exception() if reader is not None else None
    if reason is not failure and failure.__cause__ is None:
        failure.__cause__ = reason


def _abandon(client: Client) -> None:
    """Close what a failed connect has left open."""
    for task in (client._reading_task, client._ping_interval_task, client._flusher_task):
        if task is not None:
            task.cancel()
    if client._transport is not None:
        client._transport.close()
