"""Publishing a stream: many messages in flight, bounded, with one place where their outcome is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from msight_bus.adapters.base import WAIT, Adapter, Wait
from msight_bus.errors import BusError, ClosedError, PublishTimeoutError
from msight_bus.payload import Payload, check_headers, check_key, to_bytes
from msight_bus.settings import Limits


class BusState:
    """What a bus shares with its publishers."""

    __slots__ = ("is_open", "line")

    def __init__(self, limits: Limits) -> None:
        self.is_open = False
        self.line = Line(limits)


class Line:
    """Who has to wait with a message, in the order in which they came: it holds per topic and key."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[tuple[str, str | None], int] = {}
        self._locks: dict[tuple[str, str | None], asyncio.Lock] = {}

    def has(self, topic: str, key: str | None) -> bool:
        """Whether somebody waits, so that whoever comes now waits behind."""
        return bool(self._waiting) and (topic, key) in self._waiting

    @asynccontextmanager
    async def turn(self, topic: str, key: str | None) -> AsyncIterator[None]:
        """Wait for one's turn.

        Raises:
            PublishTimeoutError: those in front take longer than ``publish_timeout``.
        """
        place = topic, key
        lock = self._locks.setdefault(place, asyncio.Lock())
        self._waiting[place] = self._waiting.get(place, 0) + 1
        try:
            try:
                async with asyncio.timeout(self._limits.publish_timeout):
                    await lock.acquire()
            except TimeoutError:
                raise PublishTimeoutError(
                    f"The messages before this one on {topic!r} could not be handed over within "
                    f"{self._limits.publish_timeout:g} s (MSIGHT_PUBLISH_TIMEOUT)."
                ) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            self._waiting[place] -= 1
            if not self._waiting[place]:
                del self._waiting[place], self._locks[place]


class Publisher:
    """Sends messages on one topic without waiting for each to be confirmed.

    Leaving the context waits until all are confirmed, and raises if one was refused, or was written before a connection
    was cut and never confirmed.
    """

    def __init__(
        self,
        adapter: Adapter,
        topic: str,
        *,
        limits: Limits,
        max_in_flight: int,
        name: str | None,
        state: BusState,
    ) -> None:
        self.topic = topic
        self._adapter = adapter
        self._limits = limits
        self._binary = adapter.capabilities.persistence
        self._max_in_flight = max_in_flight
        self._name = name
        self._state = state
        self._line = state.line
        self._publish = adapter.publish
        self._entered = False
        # how many messages share an acknowledgement; most share it with the one before
        self._in_flight: dict[asyncio.Future[None], list[int]] = {}
        self._last: asyncio.Future[None] | None = None
        self._last_count = [0]
        self._count = 0
        self._room: asyncio.Future[None] | None = None
        self._error: BusError | None = None

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        if kind is None:
            await self.flush()

    @property
    def in_flight(self) -> int:
        """Messages that were sent and are not yet acknowledged; always 0 where the broker acknowledges nothing."""
        return self._count

    async def send(
        self, data: Payload, key: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[None] | None:
        """Send one message; suspends while ``max_in_flight`` messages are unacknowledged or the connection is full.

        Returns the acknowledgement still to come on a backend that has them, else ``None``. Nobody has to wait for it.

        Raises:
            BusError: this message cannot be sent, or an earlier one was refused.
        """
        if not self._entered or not self._state.is_open:
            raise ClosedError(f"The publisher of {self.topic!r} is closed.")
        if self._error is not None:
            self._raise_error()
        if headers is not None:
            headers = check_headers(headers, self._limits, binary=self._binary)
        if key is not None:
            key = check_key(key, binary=self._binary)
        payload = data if type(data) is bytes else to_bytes(data)
        done: asyncio.Future[None] | Wait | None = WAIT
        if self._count < self._max_in_flight and not self._line.has(self.topic, key):
            done = self._publish(self.topic, payload, key, headers, self._name)
        if done is WAIT:
            done = await self._send_in_turn(payload, key, headers)
        if done is not None:
            self._count += 1
            if done is self._last:
                self._last_count[0] += 1
            else:
                self._remember(done)
        return done

    async def _send_in_turn(
        self, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> asyncio.Future[None] | None:
        async with self._line.turn(self.topic, key):
            while True:
                while self._count >= self._max_in_flight:
                    await self._wait_for_room()
                done = self._publish(self.topic, payload, key, headers, self._name)
                if done is not WAIT:
                    return done
                await self._adapter.ready(self.topic, key, self._name)

    def _remember(self, done: asyncio.Future[None]) -> None:
        count = self._in_flight.get(done)
        if count is None:
            count = self._in_flight[done] = [0]
            done.add_done_callback(self._acknowledged)
        count[0] += 1
        self._last, self._last_count = done, count

    async def flush(self) -> None:
        """Wait until all that was sent is confirmed.

        Raises:
            BusError: a message was refused, or written before a cut and never confirmed.
        """
        if self._in_flight:
            _, late = await asyncio.wait(self._in_flight, timeout=self._limits.publish_timeout)
            if late:
                raise PublishTimeoutError(
                    f"{self._count} messages on {self.topic!r} were not acknowledged within "
                    f"{self._limits.publish_timeout:g} s (MSIGHT_PUBLISH_TIMEOUT); they may still arrive."
                )
            await asyncio.sleep(0)  # lets the callbacks of the last ones run
        if self._error is not None:
            self._raise_error()
        await self._adapter.flush(self.topic)

    async def _wait_for_room(self) -> None:
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._limits.publish_timeout):
                await asyncio.shield(self._room)  # others may wait for it too
        except TimeoutError:
            raise PublishTimeoutError(
                f"{self._count} messages on {self.topic!r} are in flight and none was acknowledged within "
                f"{self._limits.publish_timeout:g} s (MSIGHT_PUBLISH_TIMEOUT)."
            ) from None

    def _acknowledged(self, done: asyncio.Future[None]) -> None:
        self._count -= self._in_flight.pop(done)[0]
        if done is self._last:
            self._last = None
        error = None if done.cancelled() else done.exception()
        if isinstance(error, BusError) and self._error is None:
            self._error = error
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
