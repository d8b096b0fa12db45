"""The end of a program of nodes: an error that the log has is not printed a second time with its traceback."""

from __future__ import annotations

import sys
from types import TracebackType

_hooked = False
LOGGED = "_msight_logged"
"""Attribute of an exception whose traceback is in the log."""


def tell_once(error: BaseException) -> None:
    """If nobody catches ``error`` and the log has its traceback, print one line at the end of the program."""
    global _hooked  # noqa: PLW0603
    if getattr(error, LOGGED, False) and not _hooked:
        _hooked = True
        before = sys.excepthook

        def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
            if getattr(value, LOGGED, False):
                print(f"{kind.__name__}: {value} (the log has its traceback)", file=sys.stderr)  # noqa: T201
            else:
                before(kind, value, trace)

        sys.excepthook = hook
