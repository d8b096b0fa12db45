"""Run a program of the repository like a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.brokers import make_backend, topics_of_examples

ROOT = Path(__file__).parents[2]


def run(*command, backend="memory", **variables):
    target = make_backend(backend)
    settings = {**target.env, "MSIGHT_PUBSUB_BACKEND": target.name, **variables}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MSIGHT_")} | settings
    with topics_of_examples():
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
