"""A connection that the client library goes on reading and writing, through its public interface only.

The ordinary way (MSIGHT_TRANSPORT=client): slower than `adapters.link`, indifferent to how a client is built inside, and
the reference that the contract suite compares the other one with. The client's own reconnection is off: a link lives
once, and the supervisor opens the next one.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from msight_bus.adapters.in_flight import InFlight
from msight_bus.adapters.link import BURST_BYTES
from msight_bus.adapters.live import LiveLink
from msight_bus.errors import BusError, ConnectionLostError, MessageTooLargeError

_CLOSE_WITHIN = 1.0
"""Seconds for each step of closing; a client waits for a peer that may be frozen."""

Entry = TypeVar("Entry")


class ClientLink(LiveLink, Generic[Entry]):
    """Hands to a client, in order, what was put into a bounded outbox; an error of the client is the link's end."""

    def __init__(self, on_lost: Callable[[LiveLink, BusError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.congested = False
        self.in_flight = InFlight()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.received_at = self._loop.time()
        self.readable = asyncio.Event()
        self.readable.set()
        self._on_lost = on_lost
        self._outbox: list[Entry] = []
        self._outbox_bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._asked: deque[asyncio.Future[None]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None
        self._reason: BusError | None = None

    def start(self, *work: Coroutine[Any, Any, None]) -> None:
        """Begin to write, and to do ``work``: the client is connected."""
        self._tasks = [self._loop.create_task(self._keep(each)) for each in (self._write(), *work)]

    @abstractmethod
    async def send(self, batch: list[Entry]) -> None:
        """Hand a batch to the client."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the client."""

    def heard(self) -> None:
        """Something came from the broker."""
        self.received_at = self._loop.time()

    @property
    def ending(self) -> bool:
        """Whether it was given up; clients swallow cancellations, so what loops has to ask."""
        return self._ending is not None

    # -- writing

    def put(self, entry: Entry, size: int = 0) -> None:
        """Hand ``entry``, of ``size`` bytes, to the client behind those before it."""
        self._outbox.append(entry)
        self._outbox_bytes += size
        if self._outbox_bytes >= BURST_BYTES:
            self._congest()
        self._filled.set()

    def ask(self, entry: Entry) -> asyncio.Future[None]:
        """Put a question; done with the `answer`, and questions are answered in order."""
        answer = self.promise()
        if not answer.done():
            self._asked.append(answer)
            self.put(entry)
        return answer

    def promise(self) -> asyncio.Future[None]:
        """A future that is refused already if the link is gone."""
        answer: asyncio.Future[None] = self._loop.create_future()
        if self.gone.done():
            answer.set_exception(ConnectionLostError("The connection was lost."))
            answer.exception()
        return answer

    def answer(self, error: BusError | None = None) -> None:
        """The broker answered the oldest question."""
        if not self._asked:
            return
        answer = self._asked.popleft()
        if answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)
            answer.exception()  # whoever waits gets it; nobody waiting is no error

    async def _write(self) -> None:
        while not self.ending:
            await self._filled.wait()
            self._filled.clear()
            batch, self._outbox, self._outbox_bytes = self._outbox, [], 0
            await self.send(batch)
            if self._outbox_bytes < BURST_BYTES and not self.ending:
                self.congested = False
                self._room.set()

    def _congest(self) -> None:
        self.congested = True
        self._room.clear()

    async def drained(self) -> None:
        """Wait until there is room to write, or the link is gone."""
        while self.congested and not self.gone.done():
            await self._room.wait()

    # -- reading

    @property
    def reading_paused(self) -> bool:  # type: ignore[override]
        """Nothing is delivered."""
        return not self.readable.is_set()

    def pause_reading(self) -> None:
        """Deliver no more."""
        self.readable.clear()

    def resume_reading(self) -> None:
        """Deliver again."""
        self.heard()
        self.readable.set()

    # -- the end

    async def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BusError as error:
            self.fail(error)
        except Exception as error:  # whatever the client raises when its connection ends
            reason = ConnectionLostError(f"The connection was lost: {str(error) or type(error).__name__}.")
            reason.__cause__ = error
            self.fail(reason)

    def fail(self, error: BusError) -> None:
        """Give the link up for ``error``."""
        if self._ending is None:
            self._reason = error
            self._congest()
            self._ending = self._loop.create_task(self._end(error), name="msight_bus client closing")

    async def _end(self, reason: BusError) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_WITHIN)
        closing = self._loop.create_task(self.disconnect())
        await asyncio.wait((closing,), timeout=_CLOSE_WITHIN)
        if not closing.done():
            closing.cancel()
            await asyncio.wait((closing,), timeout=_CLOSE_WITHIN)
        if closing.done() and not closing.cancelled():
            closing.exception()  # the connection is given up either way
        self.gone.set_result(None)
        self._room.set()
        while self._asked:
            self.answer(ConnectionLostError("The connection was lost before the broker answered."))
        self._on_lost(self, reason)

    async def close(self, within: float) -> None:
        """Close; what is not yet with the client is given up, so whoever wants it confirmed pings before."""
        self.fail(ConnectionLostError("The connection was closed."))
        assert self._ending is not None
        await asyncio.wait((self._ending,))


def check_size(size: int, limit: int, setting: str) -> None:
    """Refuse a message of ``size`` bytes, metadata included, where ``setting`` allows ``limit``.

    Raises:
        MessageTooLargeError: it is larger.
    """
    if size > limit:
        raise MessageTooLargeError(
            f"The message takes {size} bytes with its metadata and the broker takes {limit} "
            f"({setting}, or MSIGHT_MAX_MESSAGE_BYTES).",
            size=size,
            limit=limit,
        )
