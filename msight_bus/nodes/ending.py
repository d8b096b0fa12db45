"""The end of a program of nodes: an error that the log has is not printed with its traceback again."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType

_hooked = False
LOGGED = "_msight_logged"
"""Attribute of an exception that is in the log."""


def tell_once(error: BaseException) -> None:
    """If nobody catches ``error`` and the log has it, print one line at the end of the program."""
    global _hooked  # noqa: PLW0603
    if getattr(error, LOGGED, False) and not _hooked:
        _hooked = True
        before = sys.excepthook

        def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
            if getattr(value, LOGGED, False):
                print(f"{kind.__name__}: {value}", file=sys.stderr)  # noqa: T201
            else:
                before(kind, value, trace)

        sys.excepthook = hook


def mark_logged(error: BaseException) -> None:
    """Note that ``error`` is in the log."""
    with suppress(AttributeError):  # of an exception with slots
        setattr(error, LOGGED, True)
