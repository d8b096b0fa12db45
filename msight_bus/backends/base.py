"""The seam: what the bus knows of a broker. Facts go up through `TopicStream`s, commands go down through a `Consumer`.

Everything above is the same for every backend.
"""

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


class Blocked(Enum):
    """What `TopicPublisher.try_send` returns when it cannot take a message now."""

    BLOCKED = "blocked"


BLOCKED = Blocked.BLOCKED

Outcome = asyncio.Future[None] | None
"""A message's acknowledgement to come, or ``None`` if the backend's guarantee holds already."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What one subscription asked for, checked.

    Attributes:
        topics: the topics as given.
        group_id: consumer group or queue group; ``None`` for a subscriber of its own.
        queue: what happens when the consumer is slower than the stream.
        start: where it begins.
    """

    topics: tuple[str, ...]
    group_id: str | None
    queue: QueuePolicy
    start: Start

    @property
    def name(self) -> str:
        """The topics, for people."""
        return ", ".join(self.topics)


class TopicStream(Protocol):
    """One topic of one subscription: synchronous, so that nothing is awaited between a socket and the queue."""

    def deliver(self, batch: list[Message]) -> None:
        """Queue messages, at least one; the list and the messages are the stream's from now on."""

    def announced(self, session: int, highest: int) -> None:
        """A publisher says that ``highest`` was its last sequence on this topic."""

    def silence(self) -> float:
        """Seconds for which a publisher that never announced its last sequence has been silent; 0.0 if there is none."""

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Messages are missing, ``missing`` or at most so many; ``None`` if how many cannot be known."""


class Inbox(Protocol):
    """The receiving half of one subscription, as a backend sees it."""

    def stream(self, topic: str) -> TopicStream:
        """The stream of one of its topics."""

    @property
    def room(self) -> int:
        """Messages that the queue still takes."""

    def gap(self, missing: int | None, cause: str) -> None:
        """Messages are missing on every topic."""

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Take queued messages back: they are delivered elsewhere."""

    def put_back(self, message: Message) -> None:
        """Deliver a message again."""

    def drop(self, message: Message, cause: str) -> None:
        """Count a delivered message as dropped, and settle it."""

    def skip(self, count: int) -> None:
        """So many messages of a log, at most, are passed over for fresh ones."""

    def shed(self) -> None:
        """The backend cannot wait for room any longer: drop what is over the bound."""

    def fail(self, error: BusError) -> None:
        """Nothing more comes, because of ``error``."""


class Consumer(Protocol):
    """One subscription at the broker."""

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
        """Make what is settled durable, within a deadline of its own."""

    async def close(self) -> None:
        """Stop, commit and release everything, within deadlines of its own."""


class TopicPublisher(Protocol):
    """One publisher on one topic. All of a bus share the topic's counter."""

    def try_send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Outcome | Blocked:
        """Hand over one message without waiting.

        Returns:
            The message's outcome, or `BLOCKED` if nothing was taken: then `send` waits.

        Raises:
            MessageTooLargeError: before anything was sent.
            BusError: what the broker refused of this publisher's messages since its last call; this one was not sent.
        """

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Outcome:
        """Hand over one message, waiting for room in the order of the calls.

        Raises:
            PublishTimeoutError: nothing was taken within ``publish_timeout``.
            BusError: as `try_send`, or nothing ever will be taken.
        """

    async def flush(self) -> None:
        """Wait until all that this publisher has sent is confirmed, within ``publish_timeout``.

        Raises:
            BusError: a message of this publisher was refused, or was written before a cut and never confirmed.
        """

    def close(self) -> None:
        """Send no more. What was refused and not raised is not raised any more."""


class Backend(Protocol):
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

    def publisher(self, topic: str, name: str | None, *, keeps: bool) -> TopicPublisher:
        """A publisher on ``topic``.

        Args:
            topic: its name.
            name: the publisher's stable name, which chooses the partition of messages without a key; ``None`` spreads them.
            keeps: whether the topic's counter is kept until the publisher is closed, however long that is not used.
        """

    async def subscribe(self, selection: Selection, inbox: Inbox) -> Consumer:
        """Subscribe; returns once the broker has confirmed."""

    async def flush(self) -> None:
        """Wait until all that was published is confirmed, within ``publish_timeout``.

        Raises:
            PublishTimeoutError: it is not.
        """

    async def close(self) -> None:
        """Release everything, within a deadline, whatever state the broker is in."""


@runtime_checkable
class DeadLetterBackend(Protocol):
    """A backend that passes a record on as it came: bytes that are no text, repeated headers, no value."""

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a message that came from here on a dead-letter topic, with the headers ``why``.

        What does not fit goes without its own headers, marked with ``msight-dead-headers``.

        Returns:
            Whether it is there; if not, it never will be, and the reason was logged.

        Raises:
            PublishTimeoutError, ConnectionLostError: the broker is away.
        """


class Opener(Protocol):
    """Builds a backend; nothing is connected yet."""

    def __call__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> Backend:
        """``new_session`` gives the random ids of publishers' sessions."""
