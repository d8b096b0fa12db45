"""The end of a program: SIGTERM and SIGINT, of which the first asks for an orderly end and the second ends at once, and an error
that the log has already."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from msight_bus.errors import described

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PATIENCE = 0.25
"""Seconds that the loop has for its next turn after a second signal, before the code that keeps it from it is interrupted: that
may leave anything half done, so it is the last resort."""


class StopSignals:
    """Handlers for one run.

    They are the interpreter's and not the loop's, because the second signal must also end code that never gives the loop a
    turn.
    """

    def __init__(self) -> None:
        self._seen: list[int] = []

    @contextmanager
    def handled(self, runs_code: Callable[[asyncio.Task[Any]], bool]) -> Iterator[asyncio.Event]:
        """Handle signals while the context lasts; the event is set at the first one.

        At the second one the task that entered the context is cancelled. A third one is handled as if this had never been
        here.

        Args:
            runs_code: whether a task runs the user's code. If such a one gives the loop no turn after the second signal, it
                is cancelled on the spot.
        """
        stop = asyncio.Event()
        if threading.current_thread() is not threading.main_thread():
            yield stop  # signals are the main thread's affair
            return
        loop = asyncio.get_running_loop()
        owner = asyncio.current_task()
        assert owner is not None

        had_turn = threading.Event()

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._seen.append(number)
            if len(self._seen) == 1:
                loop.call_soon_threadsafe(stop.set)
            elif len(self._seen) == 2:
                loop.call_soon_threadsafe(end)
                # threading.Thread takes locks that the interrupted code may hold
                _thread.start_new_thread(insist, (number,))
            else:
                restore()
                running = asyncio.current_task(loop)
                if running is not None and runs_code(running):
                    running.cancel()
                    raise asyncio.CancelledError

        def end() -> None:
            had_turn.set()
            restore()
            owner.cancel()

        def insist(number: int) -> None:
            if not had_turn.wait(_PATIENCE):
                signal.pthread_kill(threading.main_thread().ident or 0, number)

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        # A forked child has no loop that could take a signal.
        restorers.append(restore)
        for number in _SIGNALS:
            # The loop's own handler does nothing, but with it a signal wakes the loop even if it comes just before the loop
            # goes to sleep.
            with suppress(NotImplementedError):
                loop.add_signal_handler(number, _nothing)
            signal.signal(number, on_signal)
        try:
            yield stop
        finally:
            restorers.remove(restore)
            for number in _SIGNALS:
                with suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
            restore()

    def raise_second(self) -> None:
        """If there was a second signal, end the program as the shell expects.

        Raises:
            SystemExit: its code is 128 and the signal's number.
        """
        if len(self._seen) > 1:
            raise SystemExit(128 + self._seen[1]) from None


def _nothing() -> None:
    pass


restorers: list[Callable[[], None]] = []
"""For each run that handles signals now: puts the former handlers back."""


def _in_a_child() -> None:
    """Put the former handlers back in a process that was forked."""
    if restorers:
        signal.set_wakeup_fd(-1)  # it leads to the parent's loop
        for restore in reversed(restorers):
            restore()
        restorers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)


# -- errors

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
                print(described(value), file=sys.stderr)  # noqa: T201
            else:
                before(kind, value, trace)

        sys.excepthook = hook


def mark_logged(error: BaseException) -> None:
    """Note that ``error`` is in the log."""
    with suppress(AttributeError):  # of an exception with slots
        setattr(error, LOGGED, True)
