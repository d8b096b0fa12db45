"""Runs tests in a copy of the project, in which one file is mutated."""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants.sampling import PROJECT, Mutant

_NOT_COPIED = (".git", ".venv", ".cache", ".*_cache", ".hypothesis", "__pycache__", "out", "dist", "build")


@dataclass(frozen=True)
class Outcome:
    """What a run of tests found.

    Attributes:
        status: ``passed``, ``failed`` or ``timeout``.
        by: the first test that failed, or the last lines of a run that could not begin.
        seconds: how long it took.
    """

    status: str
    by: str
    seconds: float


class Copy:
    """A copy of the project, whose package the tests in it import."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def with_mutant(self, mutant: Mutant) -> Iterator[None]:
        """The copy with a mutated file."""
        file = self._folder / mutant.path
        source = file.read_text()
        file.write_text(mutant.mutation.apply(source))
        try:
            yield
        finally:
            file.write_text(source)

    def test(self, arguments: list[str], within: float) -> Outcome:
        """Run pytest until its first failure, for at most ``within`` seconds."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-rfE",
            "--no-header",
            "--tb=no",
            "-p",
            "no:cacheprovider",
        ]
        # The options of the caller's own pytest would change the lines that are read below.
        environment = os.environ | {
            "PYTHONPATH": str(self._folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_ADDOPTS": "",
        }
        began = time.monotonic()
        with subprocess.Popen(
            [*command, *arguments],
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=within)
            except subprocess.TimeoutExpired:
                _end(process)
                return Outcome("timeout", "", time.monotonic() - began)
            except BaseException:  # Ctrl-C does not reach a session of its own
                _end(process)
                raise
        seconds = time.monotonic() - began
        if process.returncode in (0, 5):  # 5: no test was selected
            return Outcome("passed", "", seconds)
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
        return Outcome("failed", failed[1] if failed else output[-300:], seconds)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill pytest and its children; brokers end with the process that started them."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@contextmanager
def copied() -> Iterator[Copy]:
    """A copy of the project without what is made from it, removed at the end."""
    with TemporaryDirectory(prefix="mutants-") as folder:
        shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)
        mode = py_compile.PycInvalidationMode.CHECKED_HASH  # so that a mutant is never mistaken for its source
        compileall.compile_dir(Path(folder) / "msight_bus", quiet=2, invalidation_mode=mode)
        yield Copy(Path(folder))
