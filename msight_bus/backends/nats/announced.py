"""Servers that a NATS server announces: further members of its cluster, to try when the configured ones are gone.

Source: ``connect_urls`` of INFO in the NATS client protocol reference. Pure.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from msight_bus.settings import NatsServer
from msight_bus.settings.addresses import parse_host_port

MAX_ANNOUNCED = 64
"""Announced servers that are kept."""

_LONGEST = 300


class Candidate(NamedTuple):
    """A server to try.

    Attributes:
        server: where it is, and the user information of the URL that led there.
        tls_name: the name that its certificate must be for.
    """

    server: NatsServer
    tls_name: str


def read_announced(urls: object, by: Candidate) -> tuple[Candidate, ...]:
    """Return the servers of ``connect_urls``; what is no ``host:port`` is passed over.

    They are entered as the server that announces them: with the same credentials and the same rules of TLS. Where only
    an address is announced, the certificate must be for the name of that server, as with other NATS clients.

    Args:
        urls: the field of INFO, as it came.
        by: the server that announces.
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
