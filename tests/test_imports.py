"""What a program loads by importing the package: nothing that it may not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOT_LOADED = {"pydantic", "pydantic_settings", "numpy", "cv2", "typer", "rich", "redis", "nats", "aiokafka", "uvloop"}


def loaded_by(code: str) -> set[str]:
    """The top-level packages that are loaded after ``code`` in a fresh interpreter."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_no_client_library_and_no_command_line():
    assert not loaded_by("from msight_bus import *") & NOT_LOADED


@pytest.mark.parametrize("name", ["redis", "nats", "aiokafka"])
def test_a_backend_loads_its_own_client_library_only(name):
    backend = {"aiokafka": "kafka"}.get(name, name)
    made = f"make_backend(BusSettings(environ={{}}, backend={backend!r}), print, int)"
    code = f"from msight_bus.backends import make_backend; from msight_bus import BusSettings; {made}"
    assert loaded_by(code) & {"redis", "nats", "aiokafka"} == {name}
