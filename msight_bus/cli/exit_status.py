"""The exit status, which is the same for every command."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import typer
from rich.console import Console

from msight_bus.errors import AuthenticationError, BusError, ConfigError, ConnectionLostError, HeaderError, TopicError

FAILED, USAGE, NOT_REACHED, INTERRUPTED = 1, 2, 3, 130

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

HELP = """
Exit status: 0 done or healthy; 1 a fault was found or the operation failed; 2 wrong usage or configuration; 3 the broker was
not reached, at the start or at the end, or refused the connection; 130 interrupted.
"""


@contextmanager
def exit_status() -> Iterator[None]:
    """Print a `BusError` to standard error and exit with its status; exit with `INTERRUPTED` at Ctrl-C, SIGTERM and SIGHUP.

    Warnings are printed to standard error as sentences. SIGTERM and SIGHUP interrupt like Ctrl-C, so that a command restores the
    terminal, stops the processes that it started and removes its temporary file. A signal that the program ignores, as under
    ``nohup``, stays ignored.
    """
    caught = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in caught}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except BusError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def checked_output() -> Iterator[None]:
    """Flush standard output at the end. If output cannot be written, print why to standard error and exit with `FAILED`.

    A closed pipe, as of ``| head``, ends the program as other Unix tools: by SIGPIPE, which a shell reports as 141.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich exit with 1
            _end_by_sigpipe()
        raise
    except OSError as error:
        if error.errno not in (errno.EPIPE, *_FULL):
            raise
        if error.errno == errno.EPIPE:
            _end_by_sigpipe()
        else:
            with suppress(OSError):
                print(f"Output cannot be written: {error.strerror}.", file=sys.stderr, flush=True)  # noqa: T201
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # what is left in the buffer would be written again when the interpreter ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(FAILED)


def _end_by_sigpipe() -> None:
    if hasattr(signal, "SIGPIPE"):  # Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    err = Console(stderr=True, highlight=False)
    err.print(f"Warning: {message}", markup=False, style="yellow", soft_wrap=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Call the handler of Ctrl-C, which cancels the main task of `asyncio.run`, and raises otherwise."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(number, frame)


def fail(error: BusError) -> NoReturn:
    """Print ``error`` and exit with its status."""
    Console(stderr=True, highlight=False).print(str(error).strip(), style="red", markup=False, soft_wrap=True)
    raise typer.Exit(status_of(error)) from error


def status_of(error: BusError) -> int:
    """Return the exit status of an error."""
    if isinstance(error, ConfigError | TopicError | HeaderError):
        return USAGE
    return NOT_REACHED if isinstance(error, ConnectionLostError | AuthenticationError) else FAILED
