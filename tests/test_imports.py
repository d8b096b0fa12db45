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


def test_no_module_stands_in_the_way_of_an_exported_name():
    code = (
        "import pkgutil, types, msight_bus\n"
        "for module in pkgutil.walk_packages(msight_bus.__path__, 'msight_bus.'):\n"
        "    if '__main__' not in module.name: __import__(module.name)\n"
        "print([n for n in msight_bus.__all__ if isinstance(getattr(msight_bus, n), types.ModuleType)])\n"
        "from msight_bus import *; print(set(msight_bus.__all__) <= set(dir(msight_bus)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines() == ["[]", "True"]


def test_an_unknown_name_is_an_attribute_error():
    import msight_bus

    with pytest.raises(AttributeError, match="module 'msight_bus' has no attribute 'Buss'"):
        msight_bus.Buss  # noqa: B018
