"""Rate-limited log lines for frequent events: one line at the first event, then at most one an interval."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

_NAMED = 3
"""Maximum number of topics in a log line."""

_TOPICS = 1000
"""Maximum number of topics with a count of their own between two lines."""


class Tally:
    """The counter of one kind of event of a node, with log lines outside the message path.

    Attributes:
        total: number of messages so far.
    """

    def __init__(self, what: str, logger: logging.Logger, interval: float, level: int = logging.WARNING) -> None:
        """
        Args:
            what: name of the event, for example ``"Dropped"``; begins each line.
            logger: the node's logger.
            interval: minimum seconds between two lines.
            level: log level of the lines.
        """
        self.total = 0
        self._what = what
        self._logger = logger
        self._interval = interval
        self._level = level
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._quiet_until: float | None = None
        self._since = 0.0
        self._clear()

    def _clear(self) -> None:
        self._events = self._unknown = self._amount = 0
        self._topics: Counter[str] = Counter()
        self._detail: Callable[[], str] | str = ""
        self._error: BaseException | None = None

    def add(
        self, topic: str | None, amount: int | None = 1, detail: str = "", error: BaseException | None = None
    ) -> None:
        """Count an event.

        Args:
            topic: topic of the event; ``None`` to leave the topic out.
            amount: number of messages; ``None`` if unknown.
            detail: text for the next line if no later event replaces it.
            error: logged with its traceback if no later event replaces it.
        """
        self._events += 1
        if amount is None:
            self._unknown += 1
        else:
            self._amount += amount
            self.total += amount
        if topic is not None and (topic in self._topics or len(self._topics) < _TOPICS):
            self._topics[topic] += 1 if amount is None else amount
        self._detail = detail
        self._error = error
        if self._timer is None:
            now = self._loop.time()
            if self._quiet_until is not None and now < self._quiet_until:
                self._timer = self._loop.call_at(self._quiet_until, self._write)
            elif error is not None:
                self._write()  # at once, with the traceback of this error
            else:
                self._timer = self._loop.call_soon(self._write)

    def close(self) -> None:
        """Log the events since the last line."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()

    def _write(self) -> None:
        self._timer = None
        now = self._loop.time()
        text = f"{self._what}: {self._size()}{self._where()}"
        if self._quiet_until is not None:
            seconds = now - self._since
            rate = f" ({self._amount / seconds:,.1f}/s)" if self._amount and seconds else ""
            text += f" in {seconds:.0f} s{rate}, {self.total:,} so far"
        if self._detail:
            text += f" ({self._detail})" if self._error is None else f": {self._detail}"
        self._logger.log(self._level, "%s", text, exc_info=self._error)
        self._since = now
        self._quiet_until = now + self._interval
        self._clear()

    def _size(self) -> str:
        """Return the number of messages as text."""
        if self._unknown == self._events:
            return "unknown number" if self._events == 1 else f"unknown number, {self._events:,} times"
        size = f"{self._amount:,}"
        return f"{size} and {self._unknown:,} times an unknown number" if self._unknown else size

    def _where(self) -> str:
        if not self._topics:
            return ""
        if len(self._topics) == 1:
            return f" on {next(iter(self._topics))}"
        named = ", ".join(f"{topic} ({count:,})" for topic, count in self._topics.most_common(_NAMED))
        more = len(self._topics) - _NAMED
        return f" on {named}" + (f" and {more:,} more" if more > 0 else "")
