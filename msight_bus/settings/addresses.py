"""Where a server is: ``host:port``, and NATS's URLs."""

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
    """A NATS server. What its URL carries to authenticate stays hidden unless it is asked for.

    Attributes:
        host: name or address.
        port: TCP port.
        tls: whether the URL begins with ``tls://``.
        user_info: ``user:password`` or a token, percent-encoded as it was given; None if the URL has none.
    """

    host: str
    port: int
    tls: bool = False
    user_info: Secret | None = None

    def __str__(self) -> str:
        return self._url(None)

    def get_secret_url(self) -> str:
        """The URL with its user info, for the client library: not to be logged."""
        return self._url(self.user_info and self.user_info.get_secret_value())

    def masked_url(self) -> str:
        """The URL with a mask in the place of its user info, for a dump."""
        return self._url(self.user_info)

    def _url(self, user_info: object) -> str:
        user = "" if user_info is None else f"{user_info}@"
        return f"{'tls' if self.tls else 'nats'}://{user}{HostPort(self.host, self.port)}"


def parse_host(text: str) -> str:
    """A host name, an IPv4 or an IPv6 address (which may stand in brackets).

    Raises:
        ValueError: none of these. No message of this module quotes what it was given.
    """
    text = text.strip()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        try:
            return str(ipaddress.IPv6Address(bare))
        except ValueError:
            raise ValueError("it is no IPv6 address, and a host name has no colon") from None
    if bare is not text or len(text) > 253 or not _HOST_NAME.fullmatch(text):
        raise ValueError("it has no valid host name or address")
    return text


def parse_host_port(text: str, default_port: int | None = None) -> HostPort:
    """``host:port``, with an IPv6 address in brackets.

    Raises:
        ValueError: it is something else, or has no port and there is no default.
    """
    match = _HOST_PORT.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is not host:port")
    host = parse_host(match[2] if match[1] is None else f"[{match[1]}]")
    port = int(match[3]) if match[3] else default_port
    if port is None:
        raise ValueError("it has no port")
    if not 1 <= port <= 65535:
        raise ValueError("its port is not 1 to 65535")
    return HostPort(host, port)


def parse_nats_server(text: str) -> NatsServer:
    """``nats://``, ``tls://`` or neither, which means ``nats://``, then ``[user:password@]host[:port]``.

    Raises:
        ValueError: it is something else, a WebSocket for instance.
    """
    text = text.strip()
    match = _NATS_URL.fullmatch(text if "://" in text else f"nats://{text}")
    if match is None:
        raise ValueError("it is not nats://host:port")
    scheme = match[1].lower()
    if scheme in ("ws", "wss"):
        raise ValueError("it is a WebSocket (ws, wss), which this bus does not speak; servers have a nats:// port")
    if scheme not in ("nats", "tls"):
        raise ValueError("it begins with neither nats:// nor tls://")
    if match[2] and MASK in match[2]:
        raise ValueError("it has what a dump shows in the place of a secret")
    host, port = parse_host_port(match[3], _NATS_PORT)
    return NatsServer(host, port, scheme == "tls", Secret(match[2]) if match[2] else None)


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
