"""The end of a program: the first SIGTERM or SIGINT drains, the second stops at once; a logged error is not printed again."""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from msight_bus.errors import described

logger = logging.getLogger("msight_bus.nodes")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ONE_REQUEST = 0.2
"""Seconds within which signals count as one: a terminal or systemd signals the whole group, and a launcher passes that on."""

_TOLD_AFTER = 0.25
"""Seconds from the first signal to the log line that another signal stops at once; timers of uvloop can be early."""

_PATIENCE = 0.25
"""Seconds after a second signal until code that blocks the event loop is interrupted. An interruption can leave inconsistent
state, so the event loop has this long to cancel the code."""


class StopSignals:
    """Signal handlers for one run.

    Installed with ``signal.signal``, not ``loop.add_signal_handler``, so that a second signal stops code that blocks the loop.
    """

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._seen_at = 0.0

    @contextmanager
    def handled(self, runs_code: Callable[[asyncio.Task[Any]], bool]) -> Iterator[asyncio.Event]:
        """Handle signals while the context lasts.

        The first signal sets the event, the second cancels the task that entered the context, and a third is passed to the
        previous handlers. Signals that follow one within 0.2 s count as one with it.

        Args:
            runs_code: returns whether a task runs the user's code. If such a task blocks the event loop after the second signal,
                ``CancelledError`` is raised in it.

        Yields:
            The event.
        """
        stop = asyncio.Event()
        if threading.current_thread() is not threading.main_thread():
            yield stop  # only the main thread can handle signals
            return
        loop = asyncio.get_running_loop()
        owner = asyncio.current_task()
        assert owner is not None

        had_turn = threading.Event()
        telling: asyncio.TimerHandle | None = None

        def on_signal(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self._seen and now < self._seen_at + _ONE_REQUEST:
                return
            self._seen.append(number)
            self._seen_at = now
            if len(self._seen) == 1:
                loop.call_soon_threadsafe(begin)
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

        def begin() -> None:
            nonlocal telling
            stop.set()
            telling = loop.call_later(_TOLD_AFTER, logger.info, "Draining; another signal stops at once.")

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
        # A forked child has no event loop to handle a signal: it restores the previous handlers.
        restorers.append(restore)
        for number in _SIGNALS:
            # This handler does nothing, but registering it lets a signal wake the event loop even if the signal arrives just
            # before the loop begins to wait.
            with suppress(NotImplementedError):
                loop.add_signal_handler(number, lambda: None)
            signal.signal(number, on_signal)
        try:
            yield stop
        finally:
            if telling is not None:
                telling.cancel()
            restorers.remove(restore)
            for number in _SIGNALS:
                with suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
            restore()

    def raise_second(self) -> None:
        """Exit the program if a second signal was received.

        Raises:
            SystemExit: the code is 128 plus the signal's number.
        """
        if len(self._seen) > 1:
            raise SystemExit(128 + self._seen[1]) from None


restorers: list[Callable[[], None]] = []
"""One function for each run that handles signals: restores the previous handlers."""


def _in_a_child() -> None:
    """Restore the previous handlers in a forked process."""
    if restorers:
        signal.set_wakeup_fd(-1)  # belongs to the parent's event loop
        for restore in reversed(restorers):
            restore()
        restorers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)


# -- errors

_hooked = False
LOGGED = "_msight_logged"
"""Name of the attribute that marks a logged exception."""


def print_logged_briefly(error: BaseException) -> None:
    """If ``error`` was logged and ends the program, print one line instead of its traceback."""
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
    """Mark ``error`` as logged."""
    with suppress(AttributeError):  # an exception class with __slots__
        setattr(error, LOGGED, True)
