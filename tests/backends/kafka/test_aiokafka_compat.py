"""Private names of aiokafka are used in one package, which checks the version and these names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest

from msight_bus.backends import kafka as package
from msight_bus.backends.kafka.aiokafka_compat.added_requests import with_instance_id

PROJECT = Path(__file__).parents[3]
MODULES = list(Path(package.__file__).parent.glob("*.py"))
"""Without those of ``aiokafka_compat/``."""
DOCUMENTED = {"aiokafka", "aiokafka.abc", "aiokafka.errors"}
OWN = {"_settled", "_settlement", "_replace"}
"""Of `Message`, which its settlement uses, and of named tuples."""


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
