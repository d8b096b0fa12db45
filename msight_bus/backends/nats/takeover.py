"""Take over a connection that nats-py has opened. The only module that uses private attributes of nats-py."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

from msight_bus.backends.client_library import ClientLibrary

NATS_PY = ClientLibrary("nats-py", oldest="2.15", newest="2.16.0")


_ERROR = re.compile(rb"^-ERR '([^\r\n]*)'\r\n", re.MULTILINE)


class NoTlsError(nats.errors.Error):
    """TLS is required but the server does not offer it."""


def check_nats_py() -> None:
    """Log a WARNING if the installed nats-py is not a tested version.

    Raises:
        BusError: nats-py lacks a private attribute that this module uses.
    """
    NATS_PY.check(
        (Client(), ("_process_info", "_reading_task", "_ping_interval_task", "_flusher_task", "_transport", "_ps")),
        (Parser(), ("buf",)),
        (TcpTransport(), ("_io_reader", "_io_writer")),
    )


class _Transport(TcpTransport):
    async def connect_tls(self, *arguments: Any, **options: Any) -> None:
        """Encrypt the connection, and notify the stream protocol; else asyncio warns when the server closes the connection."""
        await super().connect_tls(*arguments, **options)
        assert self._io_reader is not None
        assert self._io_writer is not None
        transport = self._io_writer.transport
        protocol: Any = transport.get_protocol()
        if protocol is None:  # lost already: with TLS 1.3, a refusal of the client's certificate follows the handshake
            raise self._io_reader.exception() or ConnectionResetError("the server closed the connection")
        protocol.connection_made(transport)


class ConnectingClient(Client):
    """A client that sends no credentials without TLS where TLS is required.

    nats-py uses TLS only if the server's INFO requires TLS, whatever the options are. INFO precedes CONNECT.

    Attributes:
        requires_tls: whether the connection must be encrypted.
        begins_with_tls: whether the connection was encrypted before INFO.
        info: the INFO of the server; empty before it has arrived.
    """

    requires_tls = False
    begins_with_tls = False
    info: Mapping[str, Any] = {}

    @property
    def _transport(self) -> Any:
        return self._encryptable

    @_transport.setter
    def _transport(self, transport: object) -> None:
        encryptable = type(transport) is TcpTransport
        self._encryptable = _Transport() if encryptable else transport  # type: ignore[no-untyped-call]

    @property
    def is_silent(self) -> bool:
        """Whether the server accepted the connection and has not sent INFO."""
        return bool(self._transport) and not self.info

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.info = info
        if initial_connection and self.requires_tls and not self.begins_with_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise NoTlsError("TLS is required but the server does not offer it")
            info["tls_required"] = True
        # The connector reads the announced servers; nats-py would use their addresses unchecked.
        known = {name: value for name, value in info.items() if name != "connect_urls"}
        await super()._process_info(known, initial_connection)

    async def take_over(self) -> tuple[Any, bytes, Callable[[], None]]:
        """Stop the client's tasks and take the transport of the open connection.

        Returns:
            The transport, the bytes that nats-py has read and not parsed, and a function to call once the transport is closed.
        """
        await asyncio.wait(self._cancel_tasks())
        transport: Any = self._transport
        reader, writer = transport._io_reader, transport._io_writer
        leftover = bytes(self._ps.buf) + bytes(reader._buffer)
        reader._buffer.clear()

        def release() -> None:
            self._transport = (
                None  # before that, this reference keeps the writer alive, which would close the transport
            )

        return writer.transport, leftover, release

    @property
    def unread_error(self) -> str:
        """The text of an ``-ERR`` that was received and not read, because a write failed first; ``""`` if there is none."""
        reader: Any = getattr(self._transport, "_io_reader", None)
        found = _ERROR.search(bytes(reader._buffer)) if reader is not None else None
        return found[1].decode("ascii", "replace") if found else ""

    def abandon(self, failure: BaseException) -> None:
        """Close the transport that a failed connect has left open, and add the reason to ``failure`` if nats-py hides the reason.

        nats-py reports only the end of the connection; with TLS 1.3, a server refuses a certificate after the handshake.
        """
        self._cancel_tasks()
        if self._transport is None:
            return
        self._transport.close()
        reader: asyncio.StreamReader | None = getattr(self._transport, "_io_reader", None)
        reason = reader.exception() if reader is not None else None
        if reason is not failure and failure.__cause__ is None:
            failure.__cause__ = reason

    def _cancel_tasks(self) -> list[asyncio.Task[Any]]:
        tasks = [
            task for task in (self._reading_task, self._ping_interval_task, self._flusher_task) if task is not None
        ]
        for task in tasks:
            task.cancel()
        return tasks
