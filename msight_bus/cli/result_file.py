"""A result file: opened before the measurement, complete or absent after it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

Write = Callable[[Any], None]


@contextmanager
def json_file(path: Path | None) -> Iterator[Write]:
    """Yield a function that writes a value to ``path`` as JSON in UTF-8; ``-`` is standard output, ``None`` is nowhere.

    A temporary file is opened beside ``path`` at once and renamed when the value is written. Without a value, ``path`` stays
    as it was. A device or a pipe is written in place.

    Raises:
        typer.BadParameter: ``path`` cannot be written.
    """
    if path is None or path == Path("-"):
        yield lambda value: None if path is None else _dump(value, sys.stdout)
        return
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():
            handle = target.open("w", encoding="utf-8")  # a directory is refused
            temporary = None
        else:
            number, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            handle, temporary = os.fdopen(number, "w", encoding="utf-8"), Path(name)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}.", param_hint="--json") from None

    def write(value: Any) -> None:
        _dump(value, handle)
        handle.close()
        if temporary is not None:
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)

    try:
        yield write
    finally:
        handle.close()
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def _dump(value: Any, to: Any) -> None:
    to.write(json.dumps(value, indent=1) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
