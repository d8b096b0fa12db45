"""What a kind of broker tells about itself: how to find a server, to run it, to see that it answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"

Report = Callable[[str], None]
"""Receives a short line about what is being done. What it raises ends the start, which is then undone."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one server runs.

    Attributes:
        directory: private and temporary; configuration, data and log live here.
        port: TCP port on ``HOST``.
        config: lines that end the server's configuration, so that they win; ``{port}`` is the port.
        arguments: further command line arguments.
    """

    directory: Path
    port: int
    config: Sequence[str] = ()
    arguments: Sequence[str] = ()

    def extra_lines(self) -> list[str]:
        """Return ``config`` with the port put in."""
        return [line.replace("{port}", str(self.port)) for line in self.config]

    def write_config(self, name: str, lines: Sequence[str]) -> str:
        """Write a configuration file of ``lines`` and the extra ones; return its path."""
        path = self.directory / name
        path.write_text("\n".join([*lines, *self.extra_lines(), ""]))
        return str(path)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A server that can be had here.

    Attributes:
        name: what a person calls it, such as ``"Valkey"``.
        version: as the server tells it.
        commands: writes the configuration into a place and returns what to run there. The last command is the
            server, which stays in the foreground and, run again, goes on with its data; those before it
            prepare that, and each is run once to its end.
        speaks: talks to a socket that was just connected, and tells whether the server works; may raise
            ``OSError``.
        is_stand_in: speaks the protocol but is another product.
        in_container: runs in a Docker container that has the name of the place's directory.
    """

    name: str
    version: str
    commands: Callable[[Place], list[list[str]]]
    speaks: Callable[[socket.socket], bool]
    is_stand_in: bool = False
    in_container: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of broker.

    Attributes:
        label: what messages call it.
        standard_port: the port its clients expect.
        finders: the ways to a server, best first; each raises ``NotHereError`` when it is not open here.
        advice: what a person can do to get one, a line each.
        env: the ``MSIGHT_`` variables that lead to a server on ``HOST`` at the given port.
    """

    label: str
    standard_port: int
    finders: Sequence[Callable[[Report], Recipe]]
    advice: Sequence[str]
    env: Callable[[int], Mapping[str, str]]
