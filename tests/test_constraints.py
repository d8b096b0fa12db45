"""CI installs versions that .ci/constraints.txt names, also of what our dependencies depend on, and audits them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(lines, extras, found):
    """Add what ``lines`` of requirements need here to ``found``."""
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        key = normal(requirement.name), frozenset(requirement.extras)
        if key not in found:
            found.add(key)
            try:
                needed(requires(requirement.name) or (), {"", *requirement.extras}, found)
            except PackageNotFoundError:
                pass  # for another Python or system
    return found


def test_everything_that_is_installed_is_pinned():
    lines = (PROJECT / ".ci/constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    tools = (PROJECT / ".ci/requirements.txt").read_text().splitlines()[1:]
    found = needed(["msight-bus[brokers,images,nkeys]", *tools], set(), set())
    assert len(found) > 40
    assert not {name for name, _ in found} - pinned - {"msight-bus"}


@pytest.mark.parametrize(
    ("told", "says", "code"),
    [
        (
            "[{'name': 'a', 'version': '1', 'vulns': [{'id': 'CVE-1', 'fix_versions': ['2']}]}]",
            "a 1: CVE-1, fixed in 2",
            1,
        ),
        ("[{'name': 'a', 'version': '1', 'vulns': []}]", "1 packages audited, 0 known", 0),
        ("[{'name': 'a', 'skip_reason': 'unknown'}]", "NOT AUDITED: 1 of 1", 0),
        (None, "NOT AUDITED: the vulnerability service did not answer", 0),
    ],
    ids=["vulnerable", "fine", "unknown", "offline"],
)
def test_the_audit_fails_for_a_vulnerability_and_says_what_was_not_audited(tmp_path, told, says, code):
    answer = (
        "raise OSError('offline')" if told is None else f"import json; print(json.dumps({{'dependencies': {told}}}))"
    )
    (tmp_path / "pip_audit.py").write_text(
        answer
    )  # what it tells of packages with flaws; the real one needs the network
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, PROJECT / ".ci/audit.py"]
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert says in run.stdout + run.stderr
    assert run.returncode == code
