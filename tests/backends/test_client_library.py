"""The client libraries: a version that was not tested, a private attribute that is gone."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import tomllib
from functools import wraps
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.group_coordinator import GroupCoordinator
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser
from redis.asyncio.connection import AbstractConnection, Connection, DefaultParser

import msight_bus
from msight_bus import BusError
from msight_bus.backends.kafka.aiokafka_compat import AIOKAFKA
from msight_bus.backends.nats.takeover import NATS_PY
from msight_bus.backends.redis.takeover import REDIS_PY
from tests.support.brokers import make_backend
from tests.support.listeners import fake
from tests.support.servers import variables
from tests.support.talking import settings_of

PROJECT = Path(__file__).parents[2]
LIBRARIES = {"redis": REDIS_PY, "nats": NATS_PY, "kafka": AIOKAFKA}
PRIVATE = [
    *[("redis", AbstractConnection, name) for name in ("_reader", "_writer")],
    ("redis", Connection, "_connection_arguments"),
    *[("redis", DefaultParser, name) for name in ("_stream", "_reader", "_read_size", "read_from_socket")],
    *[("nats", Client, name) for name in ("_reading_task", "_ping_interval_task", "_flusher_task")],
    *[("nats", Client, name) for name in ("_transport", "_ps", "_process_info")],
    ("nats", Parser, "buf"),
    *[("nats", TcpTransport, name) for name in ("_io_reader", "_io_writer")],
    ("kafka", AIOKafkaClient, "_md_synchronizer"),
    ("kafka", AIOKafkaConnection, "send"),
    ("kafka", GroupCoordinator, "_send_req"),
]


def pretend(monkeypatch, library, version):
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == library else found(name))


def remove(monkeypatch, kind, name):
    """Take an attribute from a class, or from each of its instances."""
    if name in vars(kind) and name not in getattr(kind, "__slots__", ()):
        monkeypatch.delattr(kind, name)
        return
    make = kind.__init__

    @wraps(make)
    def without(self, *arguments, **options):
        make(self, *arguments, **options)
        delattr(self, name)

    monkeypatch.setattr(kind, "__init__", without)


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("version", ["0.9.9", "99.0.0"])
async def test_a_version_outside_the_tested_range_is_one_warning(kind, version, monkeypatch, caplog):
    library = LIBRARIES[kind]
    pretend(monkeypatch, library.name, version)
    for _ in range(2):
        async with make_backend(kind).connect():
            pass
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    for part in (library.name, version, library.oldest, library.newest):
        assert part in record.getMessage()


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("bound", ["oldest", "newest"])
async def test_a_tested_version_is_no_warning(kind, bound, monkeypatch, caplog):
    pretend(monkeypatch, LIBRARIES[kind].name, getattr(LIBRARIES[kind], bound))
    async with make_backend(kind).connect():
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("kind", "owner", "name"), PRIVATE)
async def test_a_missing_attribute_is_an_error_before_anything_is_connected(kind, owner, name, monkeypatch):
    async def peer(reader, writer):
        await reader.read()

    library = LIBRARIES[kind]
    pretend(monkeypatch, library.name, "99.1.0")
    remove(monkeypatch, owner, name)
    said = f"^{library.name} 99.1.0 .*{name}.* {re.escape(library.oldest)} to {re.escape(library.newest)}"
    async with fake(peer) as way:
        with pytest.raises(BusError, match=said):
            async with msight_bus.connect(settings_of(variables(kind, way.port))):
                pass
        assert way.connections == 0


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_the_tested_range_is_that_of_the_project(library):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    (permitted,) = [line for line in project["dependencies"] if re.match(rf"{library.name}\b", line)]
    assert f">={library.oldest}," in permitted
    assert f"{library.name}=={library.newest}" in (PROJECT / ".ci/constraints.txt").read_text().splitlines()
