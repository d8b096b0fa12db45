"""Private names of aiokafka are used in one package, which checks the version and these names."""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest

import msight_bus
from msight_bus import BusError
from msight_bus.backends import kafka as package
from msight_bus.backends.kafka.aiokafka_compat import AIOKAFKA
from msight_bus.backends.kafka.aiokafka_compat.added_requests import with_instance_id
from tests.support.listeners import fake
from tests.support.servers import variables
from tests.support.talking import settings_of

PROJECT = Path(__file__).parents[3]
MODULES = list(Path(package.__file__).parent.glob("*.py"))
"""Without those of ``aiokafka_compat/``."""
DOCUMENTED = {"aiokafka", "aiokafka.abc", "aiokafka.errors"}
OWN = {"_settled", "_settlement", "_replace"}
"""Of `Message`, which its settlement uses, and of named tuples."""


def pretend(monkeypatch, version):
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "aiokafka" else found(name))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_other_module_reaches_a_private_name(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {name.name for name in node.names if name.name.startswith("aiokafka")} <= DOCUMENTED
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiokafka"):
            assert node.module in DOCUMENTED, node.module
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            assert ast.unparse(node.value) in ("self", "cls") or node.attr in OWN, ast.unparse(node)


@pytest.mark.parametrize("version", ["0.9.9", "99.0.0"])
async def test_a_version_outside_the_tested_range_is_one_warning(kafka, version, monkeypatch, caplog):
    pretend(monkeypatch, version)
    for _ in range(2):
        async with kafka.connect():
            pass
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    for part in ("aiokafka", version, AIOKAFKA.oldest, AIOKAFKA.newest):
        assert part in record.getMessage()


async def test_the_tested_version_is_no_warning(kafka, caplog):
    async with kafka.connect():
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(AIOKafkaClient, "_md_synchronizer"), (AIOKafkaConnection, "send"), (GroupCoordinator, "_send_req")],
)
async def test_a_missing_attribute_is_an_error_before_anything_is_connected(owner, name, monkeypatch):
    async def peer(reader, writer):
        await reader.read()

    pretend(monkeypatch, "99.1.0")
    monkeypatch.delattr(owner, name)
    said = f"^aiokafka 99.1.0 .*{name}.* {re.escape(AIOKAFKA.oldest)} to {re.escape(AIOKAFKA.newest)}"
    async with fake(peer) as way:
        with pytest.raises(BusError, match=said):
            async with msight_bus.connect(settings_of(variables("kafka", way.port))):
                pass
        assert way.connections == 0


@pytest.mark.parametrize(
    ("request_of", "versions"),
    [
        (lambda: HeartbeatRequest("g", 1, "m"), {3: 3, 2: 1}),
        (lambda: OffsetCommitRequest("g", 1, "m", -1, [("t", [(0, 5, "")])]), {9: 7, 6: 3}),
    ],
    ids=["heartbeat", "commit"],
)
def test_a_broker_before_static_membership_gets_the_requests_of_aiokafka(request_of, versions):
    for newest, used in versions.items():
        request = with_instance_id(request_of(), "worker-1")
        built = request.prepare({request.API_KEY: (0, newest)})
        assert (built.API_VERSION, b"worker-1" in built.encode()) == (used, newest != min(versions))


def test_a_missing_name_is_an_error_at_import():
    script = "from aiokafka.protocol import offset; del offset.OffsetRequest; import msight_bus.backends.kafka.aiokafka_compat"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.search("BusError: aiokafka .*'OffsetRequest'.*; install one of them", ended.stderr), ended.stderr


def test_the_tested_range_is_that_of_the_project():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    (permitted,) = [line for line in project["dependencies"] if re.match(r"aiokafka\b", line)]
    assert f">={AIOKAFKA.oldest}," in permitted
    assert f"aiokafka=={AIOKAFKA.newest}" in (PROJECT / ".ci/constraints.txt").read_text().splitlines()
