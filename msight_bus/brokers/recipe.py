"""Descriptions of brokers: how to find a server, run it, and check that it is ready."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"

Report = Callable[[str], None]
"""Receives a line about each step. An exception ends the start, and started processes are killed."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Directory, port and configuration of one server.

    Attributes:
        directory: temporary directory for configuration, data and log.
        port: TCP port on ``HOST``.
        config: lines at the end of the server's configuration, which override earlier lines; ``{port}`` is the port.
        arguments: additional command line arguments.
    """

    directory: Path
    port: int
    config: Sequence[str] = ()
    arguments: Sequence[str] = ()

    def extra_lines(self) -> list[str]:
        """Return ``config`` with the port inserted."""
        return [line.replace("{port}", str(self.port)) for line in self.config]

    def write_config(self, name: str, lines: Sequence[str]) -> str:
        """Write a configuration file with ``lines`` and the extra lines; return its path."""
        path = self.directory / name
        path.write_text("\n".join([*lines, *self.extra_lines(), ""]))
        return str(path)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A server program that is available on this machine.

    Attributes:
        name: name of the product, such as ``"Valkey"``.
        version: version of the server.
        commands: writes the configuration and returns the commands to run. The last command is the server, which runs in the
            foreground and, when run again, keeps its data. The commands before it prepare the data; each is run once.
        speaks: returns whether the server on a connected socket is ready; can raise ``OSError``.
        is_stand_in: whether the server is another product that speaks the same protocol.
        in_container: whether the server runs in a Docker container with the name of the instance's directory.
    """

    name: str
    version: str
    commands: Callable[[Instance], list[list[str]]]
    speaks: Callable[[socket.socket], bool]
    is_stand_in: bool = False
    in_container: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of broker.

    Attributes:
        label: name in messages.
        standard_port: default TCP port.
        finders: functions that find or download a server, best first; each raises ``ServerNotFoundError`` if it finds none.
        advice: ways to install a server, one line each.
        env: returns the ``MSIGHT_`` variables for a server on ``HOST`` at a port.
    """

    label: str
    standard_port: int
    finders: Sequence[Callable[[Report], Recipe]]
    advice: Sequence[str]
    env: Callable[[int], Mapping[str, str]]
