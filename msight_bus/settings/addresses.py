"""Parse the addresses of servers: ``host:port`` and URLs of NATS."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from msight_bus.settings.secret import MASK, Secret

_LABEL = r"[A-Za-z0-9_-]{1,63}"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?")
_HOST_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")
_NATS_URL = re.compile(r"([A-Za-z0-9+.-]+)://(?:([!-.0-?A-~]+)@)?([^@/]*)/?")  # user info: printable, no @ or /
_NATS_PORT = 4222


class HostPort(NamedTuple):
    """A host and its TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NatsServer(NamedTuple):
    """A NATS server. ``str`` and ``repr`` hide the credentials in its URL.

    Attributes:
        host: name or address.
        port: TCP port.
        tls: whether the URL begins with ``tls://``.
        user_info: ``user:password`` or a token, percent-encoded as configured; None if the URL has none.
    """

    host: str
    port: int
    tls: bool = False
    user_info: Secret | None = None

    def __str__(self) -> str:
        return self._url(None)

    def get_secret_url(self) -> str:
        """Return the URL with its user info, for the client library; do not log it."""
        return self._url(self.user_info and self.user_info.get_secret_value())

    def masked_url(self) -> str:
        """Return the URL with its user info masked, for a dump."""
        return self._url(self.user_info)

    def _url(self, user_info: object) -> str:
        user = "" if user_info is None else f"{user_info}@"
        return f"{'tls' if self.tls else 'nats'}://{user}{HostPort(self.host, self.port)}"


def parse_host(text: str) -> str:
    """Parse a host name, an IPv4 address or an IPv6 address, with or without brackets.

    Raises:
        ValueError: ``text`` is none of these. No error of this module quotes the text, which can contain a secret.
    """
    text = text.strip()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        try:
            return str(ipaddress.IPv6Address(bare))
        except ValueError:
            raise ValueError("it is neither an IPv6 address nor a host name, which has no colon") from None
    if bare is not text or len(text) > 253 or not _HOST_NAME.fullmatch(text):
        raise ValueError("it has no valid host name or address")
    return text


def parse_host_port(text: str, default_port: int | None = None) -> HostPort:
    """Parse ``host:port``, with an IPv6 address in brackets.

    Raises:
        ValueError: ``text`` has another form, or no port, and there is no default port.
    """
    match = _HOST_PORT.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is not host:port")
    host = parse_host(match[2] if match[1] is None else f"[{match[1]}]")
    port = int(match[3]) if match[3] else default_port
    if port is None:
        raise ValueError("it has no port")
    if not 1 <= port <= 65535:
        raise ValueError("its port is not in 1 to 65535")
    return HostPort(host, port)


def parse_nats_server(text: str) -> NatsServer:
    """Parse ``[nats://|tls://][user:password@]host[:port]``; the default scheme is ``nats://``, the default port 4222.

    Raises:
        ValueError: ``text`` has another form, or another scheme, such as ``ws://``.
    """
    text = text.strip()
    match = _NATS_URL.fullmatch(text if "://" in text else f"nats://{text}")
    if match is None:
        raise ValueError("it is not nats://host:port")
    scheme = match[1].lower()
    if scheme in ("ws", "wss"):
        raise ValueError("it is a WebSocket URL (ws, wss), which is not supported; use the nats:// port of the server")
    if scheme not in ("nats", "tls"):
        raise ValueError("it begins with neither nats:// nor tls://")
    if match[2] and MASK in match[2]:
        raise ValueError("it has the mask of a dump instead of a secret")
    host, port = parse_host_port(match[3], _NATS_PORT)
    return NatsServer(host, port, scheme == "tls", Secret(match[2]) if match[2] else None)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a loopback address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
