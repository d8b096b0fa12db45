"""Where a server program is: on PATH, inside an installed package; and which version it is."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from msight_bus.brokers.errors import NotHereError


def on_path(*names: str, also: tuple[str, ...] = ()) -> str:
    """Return the first of the programs ``names`` that is on PATH or in one of the folders ``also``.

    Raises:
        NotHereError: none is there.
    """
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=":".join(also))
        if found:
            return found
    raise NotHereError(f"{' or '.join(names)} is not on PATH")


def in_package(module: str, pattern: str) -> str:
    """Return the file that matches the glob ``pattern`` in an installed package, which is not imported.

    Raises:
        NotHereError: the package is not installed, or has no such file for this platform.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise NotHereError(f"Python package {module} is not installed")
    return in_folder(Path(spec.origin).parent, pattern)


def in_folder(folder: Path, pattern: str) -> str:
    """Return the one file that matches the glob ``pattern`` below ``folder``, or raise ``NotHereError``."""
    for path in folder.glob(pattern):
        return str(path)
    raise NotHereError(f"{folder} has no {pattern}")


def output(*argv: str) -> str:
    """Return all that a short command prints; raise ``NotHereError`` when it fails or takes over 20 s."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHereError(f"{argv[0]} does not run here: {error}") from error
    text = done.stdout + done.stderr
    if done.returncode:
        raise NotHereError(f"{' '.join(argv[:2])} failed: {' '.join(text.split())[-300:]}")
    return text


def version(text: str) -> str:
    """Return the first dotted number in ``text``, or ``"unknown"``."""
    match = re.search(r"\d+(\.\d+)+", text)
    return match[0] if match else "unknown"
