"""The tests mirror the source, and share what they share through `tests/support/`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROJECT = TESTS.parent
ACROSS = {"cancellation", "clusters", "contract", "faults", "security", "support"}
"""Folders whose story is no package's."""

OF_THE_PROJECT = {
    "test_constraints",
    "test_imports",
    "test_install",
    "test_layout",
    "test_promises",
    "test_readme",
    "test_traces",
}
MODULES = sorted(TESTS.rglob("*.py"))


def packages(folder):
    return {path.parent.name for path in folder.glob("*/__init__.py")}


def test_a_folder_of_tests_is_named_as_a_package():
    known = packages(PROJECT / "msight_bus") | {"benchmarks", "examples"} | ACROSS
    assert packages(TESTS) <= known, sorted(packages(TESTS) - known)


def test_a_module_beside_the_folders_is_named_as_what_it_tests():
    known = {f"test_{path.stem}" for path in (PROJECT / "msight_bus").glob("*.py")}
    known |= {f"test_{name}" for name in packages(PROJECT / "msight_bus")} | OF_THE_PROJECT
    found = {path.stem for path in TESTS.glob("test_*.py")}
    assert found <= known, sorted(found - known)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_a_module_imports_no_test_and_no_conftest(path):
    imported = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    wrong = [
        name for name in imported if name.startswith("tests.") and name.split(".")[-1].startswith(("test_", "conf"))
    ]
    assert not wrong, "what several modules need belongs in tests/support"
