"""Check whether a server answers in its protocol, unencrypted or over TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from msight_bus.brokers.recipe import HOST

_TIMEOUT = 1.0  # seconds for each operation on the socket


def answers(port: int, speaks: Callable[[socket.socket], bool]) -> bool:
    """Return whether ``speaks`` accepts the server on ``port``, on a new connection."""
    try:
        with socket.create_connection((HOST, port), timeout=_TIMEOUT) as plain:
            if speaks(plain):
                return True
    except ConnectionRefusedError:
        return False
    except OSError:
        pass  # a server with TLS closes an unencrypted connection
    return _answers_tls(port, speaks)


def _answers_tls(port: int, speaks: Callable[[socket.socket], bool]) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the server was started here, and receives no secret
    try:
        with (
            socket.create_connection((HOST, port), timeout=_TIMEOUT) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return speaks(secure)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # ready; it requires a client certificate
    except OSError:
        return False


def receive_line(connection: socket.socket) -> bytes:
    """Return the bytes up to and including CR LF, at most 64 KiB.

    Raises:
        OSError: the connection was closed, or the read timed out.
    """
    line = b""
    while not line.endswith(b"\r\n") and len(line) < 65_536:
        line += receive(connection, 1)
    return line


def receive(connection: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes.

    Raises:
        ConnectionError: the server closed the connection.
    """
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("connection closed in the middle of a reply")
        data += part
    return data
