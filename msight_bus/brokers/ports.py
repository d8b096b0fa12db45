"""Find free TCP ports."""

from __future__ import annotations

import random
import socket

from msight_bus.brokers.errors import PortTakenError
from msight_bus.brokers.recipe import HOST

# Below the range of ephemeral ports. A client that reconnects to a port in that range while its broker is down can get the same
# port for its own side, connect to itself, and keep the broker from listening.
_CANDIDATES = range(20_000, 30_000)


def free_port() -> int:
    """Return a TCP port on loopback that is free now; another program can take it before it is used."""
    while True:
        port = random.choice(_CANDIDATES)
        try:
            require_free(port)
        except PortTakenError:
            continue
        return port


def require_free(port: int) -> None:
    """Check that a server can listen on ``port``.

    Raises:
        PortTakenError: it cannot.
    """
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do, so that closed connections do not prevent listening
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise PortTakenError(
                f"Port {port} on {HOST} cannot be used ({error}). Stop the program that listens there, choose another port, "
                "or omit the port to use a free one."
            ) from error
