"""Runs tests in a copy of the project, in which files are changed."""

from __future__ import annotations

import asyncio
import compileall
import json
import os
import py_compile
import re
import shutil
import signal
import sys
import time
from asyncio import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants.marking import RECORD, marked
from tests.mutants.sampling import PROJECT, Mutant

_NOT_COPIED = (".git", ".venv", ".cache", ".*_cache", ".hypothesis", "__pycache__", "out", "dist", "build")
_OPTIONS = ["-vv", "-rfEp", "--no-header", "--tb=no", "--durations=0", "--durations-min=0", "-p", "no:cacheprovider"]
_IN_PARALLEL = ["-n", "2", "--dist", "loadfile"]
_PASSED = re.compile(r"^PASSED (.+)$", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", re.MULTILINE)
_DEADLINE = re.compile(r"TimeoutError|subprocess\.TimeoutExpired|Failed: Timeout")
_DURATION = re.compile(r"^([\d.]+)s (setup|call|teardown) +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run of tests found.

    Attributes:
        status: ``passed``, ``failed`` or ``timeout``.
        by: the first test that failed, or the last lines of a run that could not begin.
        seconds: how long the tests took, without their collection; for ``timeout``, how long the run took.
        late: whether a deadline was exceeded, as on an overloaded machine.
    """

    status: str
    by: str = ""
    seconds: float = 0.0
    late: bool = False


@dataclass
class Recording:
    """The tests that pass without a mutation.

    Attributes:
        seconds: how long each took.
        tests: the tests that run a line of a file.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tests: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))


class Copy:
    """A copy of the project, whose package the tests in it import."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def _changed(self, changes: Mapping[str, Callable[[str], str]]) -> Iterator[None]:
        """The copy with the sources of these files changed."""
        sources = {self._folder / path: (self._folder / path).read_text() for path in changes}
        try:
            for file, change in zip(sources, changes.values(), strict=True):
                file.write_text(change(sources[file]))
            yield
        finally:
            for file, source in sources.items():
                file.write_text(source)

    async def test(self, tests: Sequence[str], within: float, mutant: Mutant | None = None) -> Outcome:
        """Run tests until one fails twice, for at most ``within`` seconds, with a mutant or without."""
        began = time.monotonic()
        try:
            with self._changed({mutant.path: mutant.mutation.apply} if mutant is not None else {}):
                status, output = await self._pytest(["-x", "--reruns=1", *tests], within)
        except TimeoutError:
            return Outcome("timeout", seconds=time.monotonic() - began, late=True)
        seconds = sum(_durations(output).values())
        if status == 0 and set(tests) <= set(_PASSED.findall(output)):  # a mutant can end the process
            return Outcome("passed", seconds=seconds)
        failed = _FAILED.search(output)
        if failed is None:
            return Outcome("failed", output[-300:], seconds)
        return Outcome("failed", failed[1], seconds, _DEADLINE.match(failed[2] or "") is not None)

    async def record(self, arguments: Sequence[str], lines: Mapping[str, Sequence[int]], within: float) -> Recording:
        """Run the tests that pytest selects with these arguments; return those that passed, and which of ``lines`` each ran.

        Raises:
            RuntimeError: pytest did not run all tests.
        """
        (self._folder / RECORD).write_text("")
        with self._changed({path: partial(marked, path, lines[path]) for path in lines}):
            status, output = await self._pytest([*_IN_PARALLEL, *arguments], within)
        if status not in {0, 1}:
            raise RuntimeError(f"pytest ended with status {status}: {output[-2000:]}")
        durations = _durations(output)
        recording = Recording({test: durations[test] for test in _PASSED.findall(output)})
        for path, line, test in map(json.loads, (self._folder / RECORD).read_text().splitlines()):
            recording.tests[path, line].add(test)
        return recording

    async def _pytest(self, arguments: Sequence[str], within: float) -> tuple[int | None, str]:
        """Return the exit status and the output; raise `TimeoutError` after ``within`` seconds."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", *_OPTIONS, *arguments),
            cwd=self._folder,
            # The options of the caller's own pytest would change the lines that are read.
            env=os.environ | {"PYTHONPATH": str(self._folder), "PYTEST_ADDOPTS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(within):
                output, _ = await process.communicate()
        except BaseException:  # Ctrl-C does not reach a session of its own
            # Brokers end with the process that started them.
            os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()
            raise
        return process.returncode, output.decode(errors="replace")


def _durations(output: str) -> dict[str, float]:
    """The seconds of each test, of the slower run of a test that ran twice."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for seconds, phase, test in _DURATION.findall(output):  # in descending order
        found[test].setdefault(phase, float(seconds))
    return defaultdict(float, {test: sum(phases.values()) for test, phases in found.items()})


@contextmanager
def copied() -> Iterator[Copy]:
    """A copy of the project without what is made from it, removed at the end."""
    with TemporaryDirectory(prefix="mutants-") as folder:
        shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)
        mode = py_compile.PycInvalidationMode.CHECKED_HASH  # so that a mutant is never mistaken for its source
        compileall.compile_dir(Path(folder) / "msight_bus", quiet=2, invalidation_mode=mode)
        yield Copy(Path(folder))
