"""The tests mirror the source, and share what they share through `tests/support/`."""

from __future__ import annotations

import ast
from pathlib import Path

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


def packages(folder):
    """The packages in a folder and in its packages, by their paths below it."""
    return {str(path.parent.relative_to(folder)) for path in folder.glob("*/**/__init__.py")}


def has_tests(folder):
    return any(folder.glob("test_*.py"))


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


def test_a_package_has_a_folder_of_tests_or_a_module():
    paths = [TESTS / package for package in packages(PROJECT / "msight_bus")]
    without = [path for path in paths if not (has_tests(path) or path.with_name(f"test_{path.name}.py").exists())]
    assert without == []


def test_a_folder_of_tests_is_a_package():
    """Otherwise the folder escapes the rules above."""
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_a_module_beside_the_folders_is_named_as_what_it_tests():
    known = {f"test_{path.stem}" for path in (PROJECT / "msight_bus").glob("*.py")}
    known |= {f"test_{name}" for name in packages(PROJECT / "msight_bus")} | OF_THE_PROJECT
    found = {path.stem for path in TESTS.glob("test_*.py")}
    assert found <= known, sorted(found - known)


def test_a_module_imports_only_support_and_what_is_no_test_beside_it():
    wrong = [
        f"{path}: {name}"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if name.startswith("tests.")
        and (
            not name.startswith(("tests.support.", f"tests.{path.relative_to(TESTS).parts[0]}."))
            or any(part.startswith("test_") or part == "conftest" for part in name.split("."))
        )
    ]
    assert wrong == [], "what several modules need belongs in tests/support"
