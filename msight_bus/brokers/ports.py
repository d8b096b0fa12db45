"""Free ports, and whether somebody listens."""

from __future__ import annotations

import random
import socket

from msight_bus.brokers.errors import PortTakenError
from msight_bus.brokers.recipe import HOST

# Below the range that kernels take ports of outgoing connections from. While a broker is down, a client that
# reconnects to a port of that range may be given this very port, connect to itself, and keep the broker out.
_CANDIDATES = range(20_000, 30_000)


def free_port() -> int:
    """Return a TCP port on loopback that nobody has now; somebody may take it before it is used."""
    while True:
        port = random.choice(_CANDIDATES)
        try:
            require_free(port)
        except PortTakenError:
            continue
        return port


def require_free(port: int) -> None:
    """Raise ``PortTakenError`` when a server cannot listen on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections are no obstacle
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise PortTakenError(
                f"Port {port} on {HOST} cannot be used ({error}). If another program listens there, it is "
                "left alone: stop it, name another port, or name none to have a free one chosen."
            ) from error
