"""What was written to a connection and is not yet confirmed by the broker. Pure."""

from __future__ import annotations

import asyncio
from collections import Counter, deque


class _Run:
    """Messages on one topic, one behind the other."""

    __slots__ = ("count", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.count = 1


class InFlight:
    """Messages and round trips in the order in which they were written.

    Messages are kept as runs of one topic, so a stream on one topic costs one entry. A round trip (PING) is a future
    in the same order: when its answer comes, all that was written before it has been processed.
    """

    __slots__ = ("_entries", "_last", "written")

    def __init__(self) -> None:
        self._entries: deque[_Run | asyncio.Future[None]] = deque()
        self._last: _Run | None = None
        self.written = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def wrote(self, topic: str) -> None:
        """A message on ``topic`` was written."""
        self.written += 1
        last = self._last
        if last is not None and last.topic == topic:
            last.count += 1
        else:
            self._last = _Run(topic)
            self._entries.append(self._last)

    def asked(self, answer: asyncio.Future[None]) -> None:
        """A round trip was written."""
        self._entries.append(answer)
        self._last = None

    def confirm_one(self) -> str | None:
        """The broker answered the oldest entry; returns its topic, ``None`` for a round trip."""
        entries = self._entries
        if not entries:
            return None
        entry = entries[0]
        if isinstance(entry, _Run):
            if entry.count == 1:
                entries.popleft()
                if entry is self._last:
                    self._last = None
            else:
                entry.count -= 1
            return entry.topic
        entries.popleft()
        if not entry.done():
            entry.set_result(None)
        return None

    def confirm_to_answer(self) -> None:
        """The broker answered the oldest round trip, and so has processed every message written before it.

        An answer that nobody asked for confirms nothing.
        """
        entries = self._entries
        if all(isinstance(entry, _Run) for entry in entries):
            return
        while isinstance(entry := entries.popleft(), _Run):
            pass
        if not entry.done():
            entry.set_result(None)

    def cut(self, error: BaseException) -> Counter[str]:
        """The connection is gone: fail the round trips and return the unconfirmed messages by topic."""
        lost: Counter[str] = Counter()
        for entry in self._entries:
            if isinstance(entry, _Run):
                lost[entry.topic] += entry.count
            elif not entry.done():
                entry.set_exception(error)
                entry.exception()  # whoever waits gets it; nobody waiting is no error
        self._entries.clear()
        self._last = None
        return lost
