"""What a broker backend implements, and what it may call. Everything above it is the same for every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Literal, Protocol, runtime_checkable

from msight_bus.capabilities import Capabilities
from msight_bus.errors import BusError
from msight_bus.events import BusEvent
from msight_bus.message import Message
from msight_bus.queues import QueuePolicy
from msight_bus.settings import BusSettings

Start = Literal["latest", "earliest"] | datetime | Mapping[int, int]
"""Where a subscription begins; a mapping gives an offset for each partition."""


class Wait(Enum):
    """What `Adapter.publish` returns when it cannot take a message now."""

    WAIT = "wait"


WAIT = Wait.WAIT


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """One subscription as the user asked for it, checked."""

    topic: str
    group_id: str | None
    queue: QueuePolicy
    start: Start


class Stamp(Protocol):
    """Gives each message its place in the publisher's stream, at the moment it is handed to the connection."""

    session: int
    last: dict[str, int]
    """The last sequence of each topic."""

    def next(self, topic: str) -> int:
        """The topic's next sequence, from 1."""


class Sink(Protocol):
    """Where a feed delivers: synchronous, so that nothing is awaited between the socket and the queue."""

    def deliver(self, batch: list[Message]) -> None:
        """Queue the messages of one chunk, at least one."""

    def announce_gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Messages are missing, ``missing`` or at most so many; ``None`` if how many cannot be known."""

    def announced(self, session: int, highest: int) -> None:
        """A publisher says that ``highest`` was its last sequence on this topic."""

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Take queued messages back: they are delivered elsewhere."""

    def put_back(self, message: Message) -> None:
        """Deliver a message again."""

    def drop(self, message: Message, cause: str) -> None:
        """Count a delivered message as dropped, and settle it."""

    def skip(self, count: int) -> None:
        """So many messages of a log, at most, are passed over for fresh ones."""

    def shed(self) -> None:
        """The feed cannot be paused any longer."""

    def fail(self, error: BusError) -> None:
        """The feed is broken for good."""

    @property
    def room(self) -> int:
        """Messages that the queue still takes."""


class Feed(Protocol):
    """One subscription's stream at the broker."""

    @property
    def lag(self) -> int | None:
        """Records of a log that are not yet delivered; ``None`` where there is no log, or its end is not known yet."""

    def pause(self) -> None:
        """The queue is full: read no more. Called only under the ``block`` policy."""

    def resume(self) -> None:
        """There is room again."""

    async def stop(self) -> None:
        """End the intake: nothing is delivered after this returns. What was delivered can still be settled."""

    async def commit(self) -> None:
        """Make what is settled durable, within the feed's deadline."""

    async def close(self) -> None:
        """Stop, commit and release everything."""


class Adapter(Protocol):
    """One bus's connection to a broker."""

    @property
    def capabilities(self) -> Capabilities:
        """What the backend does; complete once it is open."""

    async def open(self) -> None:
        """Connect, one try within ``connect_timeout``.

        Raises:
            ConnectionLostError: not reachable.
            AuthenticationError: refused.
        """

    def publish(
        self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None, name: str | None
    ) -> asyncio.Future[None] | Wait | None:
        """Hand over one message, without waiting: a publisher that never has to wait never suspends.

        ``name`` is the publisher's stable name, which chooses the partition of messages without a key; ``None`` spreads them.

        Returns ``None`` if the backend's guarantee holds already, a future of the broker's acknowledgement, or `WAIT` if
        nothing was taken and `ready` must be awaited first.

        Raises:
            MessageTooLargeError: before anything was sent.
            BusError: what the broker refused since the last publish on this topic.
        """

    async def ready(self, topic: str, key: str | None, name: str | None) -> None:
        """Wait until `publish` would take a message.

        Raises:
            PublishTimeoutError: it takes nothing within ``publish_timeout``.
            BusError: it never will.
        """

    async def flush(self, topic: str | None = None) -> None:
        """Round trip: all that was published before is confirmed.

        Raises:
            BusError: something on ``topic`` was refused, or was written before a cut and never confirmed.
        """

    async def subscribe(self, request: SubscribeRequest, sink: Sink) -> Feed:
        """Subscribe; returns once the broker has confirmed."""

    async def close(self) -> None:
        """Release everything, within a deadline, whatever state the broker is in."""


@runtime_checkable
class DeadLetterAdapter(Protocol):
    """An adapter that passes a record on as it came: bytes that are no text, repeated headers, no value."""

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a message that came from here on a dead-letter topic, with the headers ``why``.

        What does not fit goes without its own headers, marked with ``msight-dead-headers``.

        Returns:
            Whether it is there; if not, it never will be, and the reason was logged.

        Raises:
            PublishTimeoutError, ConnectionLostError: the broker is away.
        """


class Opener(Protocol):
    """Builds an adapter; nothing is connected yet."""

    def __call__(self, settings: BusSettings, stamp: Stamp, report: Callable[[BusEvent], None]) -> Adapter: ...
