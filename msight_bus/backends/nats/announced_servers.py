"""The servers that a NATS server announces: other members of its cluster, to try after the configured servers.

Source: ``connect_urls`` of INFO in the NATS client protocol reference. Pure.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from msight_bus.settings import NatsServer
from msight_bus.settings.addresses import parse_host_port

MAX_ANNOUNCED = 64
"""Maximum number of announced servers that are kept."""

_LONGEST = 300


class Candidate(NamedTuple):
    """A server to try.

    Attributes:
        server: address of the server, with the user information of the configured URL.
        tls_name: the host name that the server's certificate must match.
    """

    server: NatsServer
    tls_name: str


def read_announced(urls: object, by: Candidate) -> tuple[Candidate, ...]:
    """Return the servers of ``connect_urls``; entries that are not ``host:port`` are ignored.

    An announced server gets the credentials and the TLS rules of the server that announced it. For an announced IP address, the
    certificate must match the name of the announcing server, as in other NATS clients.

    Args:
        urls: the field of INFO, unchecked.
        by: the announcing server.
    """
    found: dict[tuple[str, int], Candidate] = {}
    for url in urls[: 2 * MAX_ANNOUNCED] if isinstance(urls, list) else ():
        if not isinstance(url, str) or len(url) > _LONGEST:
            continue
        try:
            host, port = parse_host_port(url)
        except ValueError:
            continue
        name = by.tls_name if _is_address(host) and not _is_address(by.tls_name) else host
        found[host, port] = Candidate(NatsServer(host, port, by.server.tls, by.server.user_info), name)
    return tuple(found.values())[:MAX_ANNOUNCED]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
