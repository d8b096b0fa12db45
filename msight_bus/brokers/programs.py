"""Find server programs on PATH, in folders and in installed packages, and their versions."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from msight_bus.brokers.errors import ServerNotFoundError


def on_path(*names: str, also: tuple[str, ...] = ()) -> str:
    """Return the path of the first of the programs ``names`` on PATH or in the folders ``also``.

    Raises:
        ServerNotFoundError: none of the programs was found.
    """
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=":".join(also))
        if found:
            return found
    raise ServerNotFoundError(f"{' or '.join(names)} is not on PATH")


def in_package(module: str, pattern: str) -> str:
    """Return the file that matches the glob ``pattern`` in an installed package, without importing the package.

    Raises:
        ServerNotFoundError: the package is not installed, or has no such file for this platform.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise ServerNotFoundError(f"Python package {module} is not installed")
    return in_folder(Path(spec.origin).parent, pattern)


def in_folder(folder: Path, pattern: str) -> str:
    """Return a file that matches the glob ``pattern`` in ``folder``.

    Raises:
        ServerNotFoundError: no file matches.
    """
    for path in folder.glob(pattern):
        return str(path)
    raise ServerNotFoundError(f"{folder} has no file {pattern}")


def output(*argv: str) -> str:
    """Run a command and return its output.

    Raises:
        ServerNotFoundError: the command failed or did not end within 20 s.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerNotFoundError(f"{argv[0]} cannot be run: {error}") from error
    text = done.stdout + done.stderr
    if done.returncode:
        raise ServerNotFoundError(f"{' '.join(argv[:2])} failed: {' '.join(text.split())[-300:]}")
    return text


@cache
def about(program: str, option: str = "--version") -> str:
    """Return what a program prints about its version; it runs once in a process.

    Raises:
        ServerNotFoundError: as `output`.
    """
    return output(program, option)


def version(text: str) -> str:
    """Return the first version number in ``text``, such as ``"7.2.1"``, or ``"unknown"``."""
    match = re.search(r"\d+(\.\d+)+", text)
    return match[0] if match else "unknown"
