"""A publisher for a stream: pipelines messages, with a bounded number in flight."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import _get_running_loop
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from msight_bus.backends.base import BLOCKED, Blocked, Outcome, TopicPublisher
from msight_bus.core import Core
from msight_bus.data.types import PayloadType
from msight_bus.errors import BusError, ClosedError, PublishTimeoutError, counted, fresh
from msight_bus.payload import Payload, check_headers, check_key, to_bytes
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.tasks import Gate

if TYPE_CHECKING:
    from typing_extensions import TypeVar as Variable  # has ``default``

    T_contra = Variable("T_contra", contravariant=True, default=Payload)
else:
    T_contra = TypeVar("T_contra", contravariant=True)


class Publisher(Generic[T_contra]):
    """A publisher on one topic that does not wait for each acknowledgement. Made by `Bus.publisher`.

    Leaving the context flushes (`flush`), which raises if a message was refused or never confirmed.

    Attributes:
        topic: the topic.
    """

    def __init__(
        self, core: Core, topic: str, *, max_in_flight: int, name: str | None, kind: PayloadType[Any] | None = None
    ) -> None:
        self.topic = topic
        self._unchanged = bytes if kind is None or kind.kind is bytes else None  # the class of values that are payloads
        self._encode = to_bytes if kind is None else kind.encode
        self._content_type: Mapping[str, str] | None = None
        if kind is not None and kind.content_type and carries_headers(core):
            self._content_type = {"content-type": kind.content_type}
        self._core = core
        self._check = core.check
        self._limits = core.limits
        self._binary = core.binary
        self._max_in_flight = max_in_flight
        self._name = name
        self._to: TopicPublisher | None = None
        # the number of messages for each acknowledgement: messages of a batch share one
        self._in_flight: dict[asyncio.Future[None], list[int]] = {}
        self._last: asyncio.Future[None] | None = None
        self._last_count = [0]
        self._count = 0
        self._room: asyncio.Future[None] | None = None
        self._gate = Gate()
        self._error: BusError | None = None
        self._on_refused: Callable[[BusError, int], None] | None = None

    async def __aenter__(self) -> Self:
        self._check()
        if self._to is None:
            self._to = self._core.backend.publisher(self._core.on_broker(self.topic), self._name, keeps=True)
        return self

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        raise TypeError("Publish with `async with bus.publisher(topic) as publisher:`.")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._to is None:
            return
        with contextlib.suppress(ClosedError):  # raised by the flush
            self._check()
        try:
            if kind is None:
                await self.flush()
        finally:
            to, self._to = self._to, None
            to.close()

    @property
    def in_flight(self) -> int:
        """Number of messages sent and not yet acknowledged; always 0 on a backend without acknowledgements."""
        return self._count

    @property
    def waits(self) -> bool:
        """Whether a message waits for room in the write buffer or below ``max_in_flight``, or for the connection."""
        return self._gate.waiting > 0

    @property
    def counter(self) -> TopicCounter | None:
        """Session and sequence of the last message on the topic; ``None`` before the first."""
        return None if self._to is None else self._to.counter

    def report_refusals(self, to: Callable[[BusError, int], None]) -> None:
        """Pass refusals to ``to(error, number of messages)`` instead of raising them. Call this after entering."""
        assert self._to is not None
        self._on_refused = self._to.on_refused = to

    async def send(
        self, data: T_contra, key: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[None] | None:
        """Send one message; wait while ``max_in_flight`` messages are unacknowledged or the write buffer is full.

        Args:
            data: the payload: a value of the publisher's type, else bytes-like or a ``Data`` value.
            key: ordering key, as for `Bus.publish`.
            headers: user headers, text. A publisher of structs, dataclasses or pydantic models adds ``content-type``.

        Returns:
            A future that is done when the message is acknowledged, ``None`` on a backend without acknowledgements. The caller
            need not await the future: `flush` and later calls raise its error.

        Raises:
            PayloadError, HeaderError, MessageTooLargeError: the message cannot be sent; nothing was sent.
            PublishTimeoutError: the message was not accepted within ``publish_timeout`` seconds; nothing was sent.
            ClosedError: the publisher or the bus is closed.
            BusError: an earlier message of this publisher was refused; this message was not sent.
        """
        if _get_running_loop() is not self._core.loop:
            self._check()
        to = self._to
        if to is None:
            raise ClosedError(
                f"The publisher of {self.topic!r} is closed or was not entered; "
                "use it inside `async with bus.publisher(topic) as publisher:`."
            )
        if self._error is not None:
            self._raise_error()
        if headers is not None:
            headers = check_headers(headers, self._limits, binary=self._binary)
        if self._content_type is not None:
            if headers is None:
                headers = self._content_type
            elif "content-type" not in map(str.lower, headers):
                headers = {**self._content_type, **headers}
        if key is not None:
            key = check_key(key, binary=self._binary)
        payload: Any = data if type(data) is self._unchanged else self._encode(data)
        outcome: Outcome | Blocked = BLOCKED
        if self._count < self._max_in_flight and not self._gate.waiting:
            outcome = to.try_send(payload, key, headers)
        if outcome is BLOCKED:
            outcome = await self._send_in_turn(to, payload, key, headers)
        if outcome is not None:
            self._count += 1
            if outcome is self._last:
                self._last_count[0] += 1
            else:
                self._remember(outcome)
        return outcome

    async def _send_in_turn(
        self, to: TopicPublisher, payload: bytes, key: str | None, headers: Mapping[str, str] | None
    ) -> Outcome:
        within = self._limits.publish_timeout
        try:
            async with self._gate.turn(within) as deadline:
                while self._count >= self._max_in_flight:
                    await self._wait_for_room()
                deadline.reschedule(None)  # the backend has a deadline of its own, with a more specific error
                return await to.send(payload, key, headers)
        except TimeoutError as error:
            if isinstance(error, BusError):
                raise
            raise PublishTimeoutError(
                f"{counted(self._count, 'message')} on {self.topic!r} in flight, none acknowledged within {within:g} s "
                "(MSIGHT_PUBLISH_TIMEOUT); this message was not sent."
            ) from None

    def _remember(self, outcome: asyncio.Future[None]) -> None:
        count = self._in_flight.get(outcome)
        if count is None:
            count = self._in_flight[outcome] = [0]
            outcome.add_done_callback(self._acknowledged)
        count[0] += 1
        self._last, self._last_count = outcome, count

    async def flush(self) -> None:
        """Wait until every message sent is confirmed, within ``publish_timeout``.

        Raises:
            PublishTimeoutError: not confirmed in time.
            ConnectionLostError: messages were written before a disconnect and never confirmed.
            BusError: a message of this publisher was refused.
        """
        self._check()
        if self._in_flight:
            _, late = await asyncio.wait(self._in_flight, timeout=self._limits.publish_timeout)
            if late:
                raise PublishTimeoutError(
                    f"{counted(self._count, 'message')} on {self.topic!r} not acknowledged within "
                    f"{self._limits.publish_timeout:g} s (MSIGHT_PUBLISH_TIMEOUT); they may still arrive."
                )
            await asyncio.sleep(0)  # lets the callbacks of the last futures run
        if self._error is not None:
            self._raise_error()
        if self._to is not None:
            await self._to.flush()

    async def _wait_for_room(self) -> None:
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)

    def _acknowledged(self, outcome: asyncio.Future[None]) -> None:
        count = self._in_flight.pop(outcome)[0]
        self._count -= count
        if outcome is self._last:
            self._last = None
        error = None if outcome.cancelled() else outcome.exception()
        if isinstance(error, BusError):
            if self._on_refused is not None:
                self._on_refused(error, count)
            elif self._error is None:
                self._error = error
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise fresh(error)


def carries_headers(core: Core) -> bool:
    """Return whether messages can have headers: on Redis, a raw payload has none."""
    return core.backend.capabilities.native_headers or core.settings.redis.wire != "raw"
