"""Whether a server answers in its own protocol, plain or over TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from msight_bus.brokers.recipe import HOST

_PATIENCE = 1.0  # seconds for each step of a conversation on loopback


def answers(port: int, speaks: Callable[[socket.socket], bool]) -> bool:
    """Tell whether the server on ``port`` satisfies ``speaks`` on a fresh connection."""
    try:
        with socket.create_connection((HOST, port), timeout=_PATIENCE) as plain:
            if speaks(plain):
                return True
    except ConnectionRefusedError:
        return False
    except OSError:
        pass  # a server that wants TLS hangs up on plain text
    return _answers_tls(port, speaks)


def _answers_tls(port: int, speaks: Callable[[socket.socket], bool]) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # we started this server, and tell it nothing
    try:
        with (
            socket.create_connection((HOST, port), timeout=_PATIENCE) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return speaks(secure)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it wants a client certificate: it is up, and not for us
    except OSError:
        return False


def receive_line(connection: socket.socket) -> bytes:
    """Return bytes up to and with the next CR LF, at most 64 KB; raise ``OSError`` when there are none."""
    line = b""
    while not line.endswith(b"\r\n") and len(line) < 65_536:
        line += receive(connection, 1)
    return line


def receive(connection: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes; raise ``ConnectionError`` when the other side hangs up before."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("connection closed in the middle of a reply")
        data += part
    return data
