"""Messages and requests written to a connection and not yet confirmed by the broker. Pure, except for the futures of requests."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from msight_bus.errors import BusError, fresh


class Sender(Protocol):
    """The part of a publisher that a connection uses.

    Attributes:
        unconfirmed: the publisher's latest run of messages.
    """

    unconfirmed: UnconfirmedRun | None

    def refused(self, error: BusError) -> None:
        """Handle the refusal of a message of this sender."""

    def connection_lost(self, count: int, reason: BusError) -> None:
        """Handle the loss of a connection on which ``count`` messages of this sender are unconfirmed."""


class UnconfirmedRun:
    """Consecutive messages of one sender.

    Attributes:
        sender: the sender.
        count: number of messages not yet confirmed.
    """

    __slots__ = ("count", "sender")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.count = 1


class Request:
    """A command that the broker answers.

    Attributes:
        answer: done when the answer has arrived; raises if the broker refused the command.
        error: a refusal that arrived before the answer, as on NATS.
        reply: the value of the answer; ``b""`` if it has none.
        topic: the topic that the command subscribes to, ``None`` for any other command.
    """

    __slots__ = ("answer", "error", "reply", "topic")

    def __init__(self, loop: asyncio.AbstractEventLoop, topic: str | None = None) -> None:
        self.answer: asyncio.Future[None] = loop.create_future()
        self.reply: object = b""
        self.error: BusError | None = None
        self.topic = topic

    def finish(self, error: BusError | None = None) -> None:
        """Complete the request with success, or with ``error``."""
        if self.answer.done():
            return
        error = self.error or error
        if error is None:
            self.answer.set_result(None)
        else:
            self.answer.set_exception(fresh(error))
            self.answer.exception()  # marks the exception as retrieved: no task may be waiting


class InFlight:
    """Messages and requests in the order in which they were written.

    Consecutive messages of one sender are one entry. The answer to a request implies that the broker has processed everything
    written before the request.

    Attributes:
        written: number of messages written so far.
    """

    __slots__ = ("_entries", "last", "written")

    def __init__(self) -> None:
        self._entries: deque[UnconfirmedRun | Request] = deque()
        self.last: UnconfirmedRun | None = None
        self.written = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def wrote(self, sender: Sender) -> None:
        """Record a message of ``sender``."""
        self.written += 1
        last = self.last
        if last is not None and last.sender is sender:
            last.count += 1
        else:
            self.last = sender.unconfirmed = UnconfirmedRun(sender)
            self._entries.append(self.last)

    def asked(self, request: Request) -> None:
        """Record a request."""
        self._entries.append(request)
        self.last = None

    def confirm(self, count: int) -> None:
        """Confirm the ``count`` oldest messages and requests; surplus answers are ignored."""
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
                if entry is self.last:
                    self.last = None
            else:
                count -= 1
                entry.finish()

    def refuse(self, error: BusError) -> None:
        """Refuse the oldest message or request with ``error``."""
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
        """Confirm the oldest message or request; a request gets ``reply``."""
        if self._entries and isinstance(entry := self._entries[0], Request):
            entry.reply = reply
        self.confirm(1)

    def confirm_to_request(self) -> None:
        """Confirm the oldest request and all messages written before it.

        An unexpected answer, without a request, confirms nothing.
        """
        entries = self._entries
        request = self.oldest_request
        if request is None:
            return
        while (entry := entries.popleft()) is not request:
            if isinstance(entry, UnconfirmedRun):
                entry.count = 0
        request.finish()

    @property
    def oldest_request(self) -> Request | None:
        """The request that is answered next; ``None`` if there is none."""
        return next((entry for entry in self._entries if isinstance(entry, Request)), None)

    def connection_lost(self, reason: BusError) -> None:
        """Fail every request with ``reason``, and report to each sender the number of unconfirmed messages."""
        entries, self._entries = self._entries, deque()
        self.last = None
        for entry in entries:
            if isinstance(entry, Request):
                entry.error = None  # without an answer, the request was not refused
                entry.finish(reason)
            else:
                count, entry.count = entry.count, 0
                entry.sender.connection_lost(count, reason)
