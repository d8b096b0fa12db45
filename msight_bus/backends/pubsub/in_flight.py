"""What was written to a connection and is not yet confirmed by the broker. Pure, but for the futures of round trips."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from msight_bus.errors import BusError, fresh


class Sender(Protocol):
    """A publisher on one topic, as far as a connection is concerned.

    Attributes:
        run: its last messages that were written one behind the other.
    """

    run: UnconfirmedRun | None

    def refused(self, error: BusError) -> None:
        """The broker refused a message that was written before."""

    def cut(self, count: int, reason: BusError) -> None:
        """The connection was lost before ``count`` messages were confirmed."""


class UnconfirmedRun:
    """Messages of one sender, one behind the other.

    Attributes:
        sender: whose they are.
        count: how many are not confirmed.
    """

    __slots__ = ("count", "sender")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.count = 1


class Request:
    """A command that the broker answers.

    Attributes:
        answer: done when the answer is here.
        error: what the broker said before the answer, if that refused it.
        reply: the answer, where there is more to it than that it is here.
        topic: what it subscribes to, if that is what it does.
    """

    __slots__ = ("answer", "error", "reply", "topic")

    def __init__(self, loop: asyncio.AbstractEventLoop, topic: str | None = None) -> None:
        self.answer: asyncio.Future[None] = loop.create_future()
        self.reply: object = b""
        self.error: BusError | None = None
        self.topic = topic

    def finish(self, error: BusError | None = None) -> None:
        """The answer is here, or ``error`` instead of it."""
        if self.answer.done():
            return
        error = self.error or error
        if error is None:
            self.answer.set_result(None)
        else:
            self.answer.set_exception(fresh(error))
            self.answer.exception()  # whoever waits gets it; nobody waiting is no error


class InFlight:
    """Messages and requests in the order in which they were written.

    Messages are kept as runs of one sender, so that a stream costs one entry. When a request is answered, all that was written
    before it has been processed.

    Attributes:
        written: messages so far.
    """

    __slots__ = ("_entries", "_last", "written")

    def __init__(self) -> None:
        self._entries: deque[UnconfirmedRun | Request] = deque()
        self._last: UnconfirmedRun | None = None
        self.written = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def wrote(self, sender: Sender) -> None:
        """A message of ``sender`` was written."""
        self.written += 1
        last = self._last
        if last is not None and last.sender is sender:
            last.count += 1
        else:
            self._last = sender.run = UnconfirmedRun(sender)
            self._entries.append(self._last)

    def asked(self, request: Request) -> None:
        """A request was written."""
        self._entries.append(request)
        self._last = None

    def confirm(self, count: int) -> None:
        """The broker answered the ``count`` oldest entries, one by one; more answers than entries confirm nothing."""
        entries = self._entries
        while count and entries:
            entry = entries[0]
            if isinstance(entry, UnconfirmedRun) and entry.count > count:
                entry.count -= count
                return
            entries.popleft()
            if isinstance(entry, UnconfirmedRun):
                count -= entry.count
                entry.count = 0
                if entry is self._last:
                    self._last = None
            else:
                count -= 1
                entry.finish()

    def refuse(self, error: BusError) -> None:
        """The broker answered the oldest entry with an error."""
        if not self._entries:
            return
        entry = self._entries[0]
        if isinstance(entry, UnconfirmedRun):
            self.confirm(1)
            entry.sender.refused(error)
        else:
            self._entries.popleft()
            entry.finish(error)

    def answer(self, reply: object) -> None:
        """The broker answered the oldest entry with ``reply``."""
        if self._entries and isinstance(entry := self._entries[0], Request):
            entry.reply = reply
        self.confirm(1)

    def confirm_to_request(self) -> None:
        """The broker answered the oldest request, and so has processed every message written before it.

        An answer that nobody asked for confirms nothing.
        """
        if self.oldest_request is None:
            return
        entries = self._entries
        while isinstance(entry := entries.popleft(), UnconfirmedRun):
            entry.count = 0
        entry.finish()

    @property
    def oldest_request(self) -> Request | None:
        """The request that is answered next."""
        return next((entry for entry in self._entries if isinstance(entry, Request)), None)

    def cut(self, reason: BusError) -> None:
        """The connection is gone: fail the requests, and tell each sender what was never confirmed."""
        entries, self._entries = self._entries, deque()
        self._last = None
        for entry in entries:
            if isinstance(entry, Request):
                entry.error = None  # without an answer nothing was refused
                entry.finish(reason)
            else:
                count, entry.count = entry.count, 0
                entry.sender.cut(count, reason)
