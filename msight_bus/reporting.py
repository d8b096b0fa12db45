"""Call the user's ``on_event`` with the events of a bus, on the event loop, outside the message path."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable

from msight_bus.events import BusEvent, Gap

logger = logging.getLogger("msight_bus")

_A_TURN = 256
_WAITING = 20_000
"""Maximum number of events reported in one event loop iteration, and of events queued; a `Gap` finds half of the places, because
after a reconnect each topic of a subscription has one."""


class Reporter:
    """A queue of events for ``on_event``, which is called in a later event loop iteration. Exceptions are logged and counted.

    Attributes:
        listeners: functions that are called with each event; ``on_event`` is one of them.
        errors: number of calls of ``on_event`` that raised or returned a coroutine.
        dropped: events that were dropped because the queue was full.
    """

    def __init__(self, on_event: Callable[[BusEvent], None] | None) -> None:
        """
        Raises:
            TypeError: ``on_event`` is a coroutine function, which would never be awaited, or is not callable.
        """
        if on_event is not None:
            _check(on_event)
        self.listeners: list[Callable[[BusEvent], None]] = [] if on_event is None else [on_event]
        self._waiting: deque[BusEvent] = deque()
        self._scheduled = False
        self.errors = 0
        self.dropped = 0

    def report(self, event: BusEvent) -> None:
        """Queue ``event``; the event is dropped and counted if the queue is full."""
        if not self.listeners:
            return
        if len(self._waiting) >= (_WAITING // 2 if isinstance(event, Gap) else _WAITING):
            self.dropped += 1
            _log_rarely(
                self.dropped,
                "Events dropped: %d, because more than %d were queued for on_event.",
                self.dropped,
                _WAITING,
            )
            return
        self._waiting.append(event)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._call_some)

    def _call_some(self) -> None:
        self._scheduled = bool(self._waiting)
        for _ in range(min(_A_TURN, len(self._waiting))):
            event = self._waiting.popleft()
            for listener in tuple(self.listeners):
                self._call(listener, event)
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._call_some)

    def flush(self) -> None:
        """Report the queued events now, when the bus closes."""
        for _ in range(len(self._waiting)):
            event = self._waiting.popleft()
            for listener in tuple(self.listeners):
                self._call(listener, event)

    def _call(self, listener: Callable[[BusEvent], object], event: BusEvent) -> None:
        try:
            result = listener(event)
        except KeyboardInterrupt:
            raise
        except BaseException:  # a callback that raises would end the calls of on_event
            self.errors += 1
            _log_rarely(
                self.errors,
                "on_event raised an exception; event: %r, errors so far: %d.",
                event,
                self.errors,
                exc_info=True,
            )
            return
        if inspect.iscoroutine(result):
            result.close()
            self.errors += 1
            _log_rarely(self.errors, "on_event returned a coroutine, which is never awaited: %s", _ADVICE)


_ADVICE = "give a plain function, which can start a task with asyncio.create_task()."


def _check(on_event: object) -> None:
    called = on_event if inspect.isroutine(on_event) else getattr(on_event, "__call__", None)  # noqa: B004
    if not callable(on_event):
        raise TypeError(f"on_event must be a function that takes one event, not {type(on_event).__name__}.")
    if inspect.iscoroutinefunction(on_event) or inspect.iscoroutinefunction(called):
        raise TypeError(f"on_event must not be a coroutine function: {_ADVICE}")


def _log_rarely(count: int, text: str, *arguments: object, exc_info: bool = False) -> None:
    """Log an event if ``count``, the number of such events so far, is a power of two."""
    if count & (count - 1) == 0:
        logger.error(text, *arguments, exc_info=exc_info)
