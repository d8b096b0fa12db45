"""The tests mirror the source, and share what they share through `tests/support/`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROJECT = TESTS.parent
ACROSS = {"cancellation", "clusters", "contract", "faults", "mutants", "security", "support"}
"""Folders whose story is no package's."""

OF_THE_PROJECT = {
    "test_constraints",
    "test_imports",
    "test_install",
    "test_layout",
    "test_promises",
    "test_readme",
    "test_retrying",
    "test_traces",
}
MODULES = sorted(TESTS.rglob("*.py"))


def packages(folder):
    """The packages in a folder and in its packages, by their paths below it."""
    return {str(path.parent.relative_to(folder)) for path in folder.glob("*/**/__init__.py")}


def relative(path):
    return str(path.relative_to(TESTS))


def imported(path):
    """The absolute names of what a module imports."""
    package = path.relative_to(PROJECT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join((*parents, *filter(None, [node.module])))
            yield from (f"{start}.{each.name}" for each in node.names)


def test_a_folder_of_tests_is_named_as_a_package():
    known = packages(PROJECT / "msight_bus") | {"benchmarks", "examples"}
    found = {name for name in packages(TESTS) if name.split("/")[0] not in ACROSS}
    assert found <= known, sorted(found - known)


@pytest.mark.parametrize("package", sorted(packages(PROJECT / "msight_bus")))
def test_a_package_has_a_folder_of_tests_or_a_module(package):
    path = TESTS / package
    assert list(path.glob("test_*.py")) or path.with_name(f"test_{path.name}.py").exists()


@pytest.mark.parametrize("path", sorted({path.parent for path in TESTS.rglob("test_*.py")}), ids=relative)
def test_a_folder_of_tests_is_a_package(path):
    """Otherwise the folder escapes the rules above."""
    assert (path / "__init__.py").exists()


def test_a_module_beside_the_folders_is_named_as_what_it_tests():
    known = {f"test_{path.stem}" for path in (PROJECT / "msight_bus").glob("*.py")}
    known |= {f"test_{name}" for name in packages(PROJECT / "msight_bus")} | OF_THE_PROJECT
    found = {path.stem for path in TESTS.glob("test_*.py")}
    assert found <= known, sorted(found - known)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_imports_only_support_and_what_is_no_test_beside_it(path):
    own = "tests." + path.relative_to(TESTS).parts[0]
    wrong = [
        name
        for name in imported(path)
        if name.startswith("tests.")
        and (
            not name.startswith(("tests.support.", f"{own}."))
            or any(part.startswith("test_") or part == "conftest" for part in name.split("."))
        )
    ]
    assert not wrong, "what several modules need belongs in tests/support"
