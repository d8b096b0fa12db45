"""Run programs like a user: those of the repository, and programs of nodes that a test writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.brokers import make_backend, topics_of_examples

ROOT = Path(__file__).parents[2]


def run(*command, backend="memory", **variables):
    target = make_backend(backend)
    settings = {**target.env, "MSIGHT_PUBSUB_BACKEND": target.name, **variables}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MSIGHT_")} | settings
    with topics_of_examples(backend):
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def program(folder: Path, code: str) -> str:
    """Return the path of a program with ``code``."""
    script = folder / "program.py"
    script.write_text(code)
    return str(script)


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of a program of nodes, without the variables of the tests; default: in memory, drained in 1 s."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "MSIGHT_PUBSUB_BACKEND": "memory",
        "MSIGHT_DRAIN_TIMEOUT": "1",
        **settings,
    }


@contextmanager
def ready(*command: str, env: Mapping[str, str], new_session: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run a program of nodes; yield its process once it has printed ``ready``."""
    with subprocess.Popen(
        [sys.executable, "-W", "default", *command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if "ready\n" not in process.stdout:
                pytest.fail(process.stderr.read())
            yield process
        finally:
            process.kill()
