"""In CI a test runs again where a deadline was exceeded, and never where an assertion failed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.retrying import timed_out

PROJECT = Path(__file__).parents[1]
TESTS = """
import asyncio, pathlib, subprocess, time, pytest
from msight_bus.errors import PublishTimeoutError

@pytest.fixture(autouse=True)
def noted(request):
    with pathlib.Path("attempts").open("a") as attempts:
        attempts.write(request.node.name + "\\n")

async def late():
    async with asyncio.timeout(0.01):
        await asyncio.Event().wait()

async def wrong():
    assert False

async def together(*coroutines):
    async with asyncio.TaskGroup() as tasks:
        for coroutine in coroutines:
            tasks.create_task(coroutine)

async def wrong_and_never_cleaned_up():
    async with asyncio.timeout(0.01):
        try:
            await wrong()
        finally:
            await asyncio.Event().wait()

def test_again_a_wait():
    asyncio.run(late())

def test_again_waits_in_a_task_group():
    asyncio.run(together(late(), late()))

def test_again_a_process():
    subprocess.run(["sleep", "60"], timeout=0.01)

@pytest.mark.timeout(0.1)
def test_again_a_test():
    time.sleep(60)

def test_never_an_assertion():
    assert False, "Timeout (>60.0s) from pytest-timeout, TimeoutError"

def test_never_an_assertion_after_a_wait():
    try:
        asyncio.run(late())
    except TimeoutError:
        assert False

def test_never_an_assertion_whose_cleanup_is_late():
    asyncio.run(wrong_and_never_cleaned_up())

def test_never_an_assertion_beside_a_wait():
    asyncio.run(together(wrong(), late()))

def test_never_an_error_of_the_bus():
    raise PublishTimeoutError("not acknowledged")

def test_never_an_error_that_did_not_come():
    with pytest.raises(TimeoutError):
        pass
"""


def attempts(folder: Path, **environment: str) -> Counter[str]:
    """How often pytest runs each of the tests, all of which fail."""
    (folder / "test_all.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.retrying", "-p", "no:cacheprovider"]
    environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=50)
    assert "10 failed" in run.stdout, run.stdout + run.stderr
    return Counter((folder / "attempts").read_text().splitlines())


def test_ci_runs_a_test_again_where_a_deadline_was_exceeded_and_nowhere_else(tmp_path):
    found = attempts(tmp_path, CI="true")
    assert found == {name: 3 if name.startswith("test_again") else 1 for name in found}


def test_outside_of_ci_nothing_runs_again(tmp_path):
    assert set(attempts(tmp_path).values()) == {1}


def test_this_run_has_the_rule_in_ci(request):
    conditions = [marker.kwargs["condition"] for marker in request.node.iter_markers("flaky")]
    assert conditions == ([timed_out] if os.environ.get("CI") else [])
