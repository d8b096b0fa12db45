"""The pytest plugin costs a project nothing that does not use it."""

from __future__ import annotations

import os
import subprocess
import sys

PRINT_MODULES = """
import sys

def pytest_unconfigure():
    print("loaded", *sys.modules)
"""


def test_pytest_imports_nothing_but_the_plugin(tmp_path):
    (tmp_path / "print_modules.py").write_text(PRINT_MODULES)
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "print_modules", "--collect-only"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        check=False,
        capture_output=True,
        text=True,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "msight_bus.pytest_plugin" in loaded
    assert not loaded & {"msight_bus.bus", "msight_bus.testing", "redis", "nats", "aiokafka", "msgspec"}
