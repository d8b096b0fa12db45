"""Tell the user what happens to a bus: its events, on the loop, outside the path of the messages."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable

from msight_bus.events import BusEvent

logger = logging.getLogger("msight_bus")

_A_TURN = 256
_WAITING = 10_000
"""Events told in a turn of the loop, and events that wait, at most."""


class Reporter:
    """Calls ``on_event`` with each event, in order, in a later turn of the loop. What it raises is logged and counted.

    Attributes:
        errors: how often ``on_event`` has raised.
        untold: events that were left out because too many waited.
    """

    def __init__(self, on_event: Callable[[BusEvent], None] | None) -> None:
        """
        Raises:
            TypeError: ``on_event`` is a coroutine function, which nobody would await, or cannot be called.
        """
        if on_event is not None:
            _check(on_event)
        self._on_event = on_event
        self._waiting: deque[BusEvent] = deque()
        self._scheduled = False
        self.errors = 0
        self.untold = 0

    def report(self, event: BusEvent) -> None:
        """Let the user know of ``event`` soon."""
        if self._on_event is None:
            return
        if len(self._waiting) >= _WAITING:
            self.untold += 1
            _log_rarely(self.untold, "%d events were not reported: more than %d waited.", self.untold, _WAITING)
            return
        self._waiting.append(event)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        self._scheduled = bool(self._waiting)
        for _ in range(min(_A_TURN, len(self._waiting))):
            self._tell(self._waiting.popleft())
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def flush(self) -> None:
        """Tell what waits, at the end."""
        for _ in range(len(self._waiting)):
            self._tell(self._waiting.popleft())

    def _tell(self, event: BusEvent) -> None:
        assert self._on_event is not None
        try:
            result: object = self._on_event(event)
        except (Exception, asyncio.CancelledError):
            self.errors += 1
            _log_rarely(self.errors, "on_event has raised at %r; errors so far: %d.", event, self.errors, exc_info=True)
            return
        if inspect.iscoroutine(result):
            result.close()
            self.errors += 1
            _log_rarely(self.errors, "on_event has returned a coroutine, which nobody awaits: %s", _ADVICE)


_ADVICE = "it is a plain function, which may start a task: asyncio.create_task(...)."


def _check(on_event: object) -> None:
    called = on_event if inspect.isroutine(on_event) else getattr(on_event, "__call__", None)  # noqa: B004
    if not callable(on_event):
        raise TypeError(f"on_event is a function of one event, not {type(on_event).__name__}.")
    if inspect.iscoroutinefunction(on_event) or inspect.iscoroutinefunction(called):
        raise TypeError(f"on_event must not be a coroutine function: {_ADVICE}")


def _log_rarely(count: int, text: str, *arguments: object, exc_info: bool = False) -> None:
    """Log the 1st, 2nd, 4th, 8th … time."""
    if count & (count - 1) == 0:
        logger.error(text, *arguments, exc_info=exc_info)
