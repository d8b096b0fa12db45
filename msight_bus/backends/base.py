"""The interface between the bus and a broker. All code above this interface is the same for every backend.

A backend implements `Backend`, `TopicPublisher` and `Consumer`. It delivers messages and reports gaps through the `Inbox` and the
`TopicStream`s of a subscription, which `msight_bus.subscription` implements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Literal, Protocol, runtime_checkable

from msight_bus.capabilities import Capabilities
from msight_bus.errors import BusError
from msight_bus.events import BusEvent
from msight_bus.message import Message
from msight_bus.patterns import TopicPattern, named
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.queue_policy import QueuePolicy
from msight_bus.settings import BusSettings
from msight_bus.topic_map import TopicMap

Start = Literal["latest", "earliest"] | datetime | Mapping[int, int] | Mapping[tuple[str, int], int]
"""The start of a subscription as users give it. A mapping has an offset for each partition of a log, or, for several topics, for
each pair of topic and partition."""

Position = Literal["latest", "earliest"] | datetime | Mapping[tuple[str, int], int]
"""A `Start` for backends: a mapping has pairs of topic and partition."""


class Blocked(Enum):
    """The result of `TopicPublisher.try_send` if the message was not accepted."""

    BLOCKED = "blocked"


BLOCKED = Blocked.BLOCKED

Outcome = asyncio.Future[None] | None
"""A future that is done when the message is acknowledged; ``None`` if the backend's guarantee holds already."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The checked arguments of one subscription.

    Attributes:
        topics: the topics that are given by name, in the given order, by their names on the broker.
        group_id: consumer group or queue group; ``None``: the subscriber receives every message.
        queue: policy for a consumer that is slower than the stream.
        start: where the subscription begins; see `Bus.subscribe`.
        patterns: the patterns, in the given order. A topic that several patterns match belongs to the first; a topic that is
            given by name belongs to no pattern (`owner`).
        topic_map: the topics that have other names on the broker.
        instance_id: identity of this member of the group that outlives a restart (`NodeConfig.instance_id`); used by Kafka only.
        mapped: names on the broker of the mapped topics that belong to a pattern. The broker's own pattern need not match them.
    """

    topics: tuple[str, ...]
    group_id: str | None
    queue: QueuePolicy
    start: Position
    patterns: tuple[TopicPattern, ...] = ()
    topic_map: TopicMap = TopicMap()  # noqa: RUF009 - immutable
    instance_id: str | None = None
    mapped: frozenset[str] = field(init=False, repr=False, compare=False)
    _named: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_named", frozenset(self.topics))
        names = [name for name, _ in self.topic_map.entries if self.owner(name) is not None]
        object.__setattr__(self, "mapped", frozenset(names))

    @property
    def name(self) -> str:
        """The first topics and patterns joined with commas, for logs and errors."""
        return named([*self.topics, *(pattern.text for pattern in self.patterns)])

    @property
    def many(self) -> bool:
        """Whether the subscription can have more than one topic."""
        return bool(self.patterns) or len(self.topics) > 1

    def owner(self, name: str) -> TopicPattern | None:
        """Return the pattern to which a name on the broker belongs; ``None`` for a topic given by name, and without a match.

        A broker sends a message once for each entry that matches; a backend delivers the owner's copy only.
        """
        topic = self.topic_map.topic_of(name)
        if name in self._named or self.topic_map.on_broker(topic) != name:
            return None
        return next((pattern for pattern in self.patterns if pattern.matches(topic)), None)


class TopicStream(Protocol):
    """One topic of one subscription. Synchronous, so that nothing is awaited between the socket and the queue."""

    def deliver(self, batch: list[Message]) -> None:
        """Queue a list of at least one message. The caller must not use the list or the messages afterwards."""

    def observe(self, batch: list[Message]) -> None:
        """Account for a list of at least one message, which the caller queues next (`Inbox.put`)."""

    def follows(self, session: int, sequence: int, received_at: float) -> bool:
        """Account for a message if it is the next of its session.

        Returns:
            ``True`` if accounted for; ``False`` if the caller must call `observe`.
        """

    def announced(self, session: int, highest: int) -> None:
        """Account for a publisher's announcement that ``highest`` is its last sequence on this topic."""

    def silence(self, within: float) -> float:
        """Return the longest silence, in seconds, of a publisher that never announced its last sequence; 0.0 if there is none.

        Only publishers heard in the last ``within`` seconds count.
        """

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Report missing messages.

        Args:
            missing: number of messages; ``None`` if unknown.
            cause: see `Gap.cause`.
            at_most: whether ``missing`` is an upper bound.
        """


class Inbox(Protocol):
    """The receiving side of one subscription, which its backend calls."""

    def topic_of(self, name: str) -> str:
        """Return the topic whose name on the broker is ``name``, for `Message.topic`."""

    def stream(self, name: str) -> TopicStream:
        """Return the stream of the topic whose name on the broker is ``name``; valid until the subscription is closed."""

    def put(self, batch: list[Message]) -> None:
        """Queue messages of any topics, after `TopicStream.observe` has accounted for them."""

    def invalid(self, count: int) -> None:
        """Count messages that a pattern matches and whose channel is not a valid topic; they are not delivered."""

    @property
    def room(self) -> int:
        """Number of messages that still fit into the queue."""

    def gap(self, missing: int | None, cause: str) -> None:
        """Report missing messages on every topic (`TopicStream.gap`)."""

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Remove queued messages that another member receives.

        Args:
            unwanted: returns whether to remove a message.
            cause: the key in `SubscriptionStats.dropped` under which they are counted.
        """

    def requeue(self, message: Message) -> None:
        """Queue a message again, in front of all others."""

    def drop(self, message: Message, cause: str) -> None:
        """Count a message that was returned to the consumer as dropped, and acknowledge it."""

    def skip(self, name: str, count: int) -> None:
        """Count up to ``count`` records of a topic, by its name on the broker, that are skipped to continue near the end."""

    def shed(self) -> None:
        """Drop the newest messages over the bound: the backend cannot pause the stream any longer."""

    def fail(self, error: BusError) -> None:
        """End the subscription with ``error``, which the consumer gets after the queued messages."""


class Consumer(Protocol):
    """One subscription at the broker."""

    @property
    def lag(self) -> int | None:
        """Number of records of a log that are not yet delivered; ``None`` without a log, or while its end is not known."""

    def pause(self) -> None:
        """Stop reading, because the queue is full. Called with the ``block`` policy only."""

    def resume(self) -> None:
        """Resume reading."""

    async def stop(self) -> None:
        """Stop receiving: nothing is delivered after this returns. Delivered messages can still be acknowledged."""

    async def commit(self) -> None:
        """Commit the acknowledged messages, within an internal deadline."""

    async def close(self) -> None:
        """Stop, commit and release all resources, within internal deadlines."""


class TopicPublisher(Protocol):
    """One publisher on one topic. All publishers of a bus on a topic share the topic's sequence counter.

    Attributes:
        on_refused: called with the error and the number of messages that were refused without an `Outcome` of their own;
            ``None``: the next call raises the error.
    """

    on_refused: Callable[[BusError, int], None] | None

    @property
    def counter(self) -> TopicCounter | None:
        """Session and sequence of the topic's last message; ``None`` before the first."""

    def try_send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Outcome | Blocked:
        """Send one message without waiting.

        Returns:
            The message's outcome, or `BLOCKED` if the message was not accepted: call `send`, which waits.

        Raises:
            MessageTooLargeError: nothing was sent.
            BusError: the broker refused an earlier message of this publisher; this message was not sent.
        """

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Outcome:
        """Send one message; wait until the backend accepts the message, in the order of the calls.

        Raises:
            PublishTimeoutError: not accepted within ``publish_timeout``; nothing was sent.
            BusError: as `try_send`, or the bus will not reconnect.
        """

    async def flush(self) -> None:
        """Wait until every message of this publisher is confirmed, within ``publish_timeout``.

        Raises:
            PublishTimeoutError: not confirmed in time.
            ConnectionLostError: messages were written before a disconnect and never confirmed.
            BusError: a message of this publisher was refused.
        """

    def close(self) -> None:
        """Close the publisher. Errors that were not raised are discarded."""


class Backend(Protocol):
    """One bus's connection to a broker."""

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the backend; final once `open` has returned."""

    async def open(self) -> None:
        """Connect: one attempt, within ``connect_timeout``.

        Raises:
            ConnectionLostError: the broker cannot be reached.
            AuthenticationError: the broker refused the credentials, or a certificate was refused.
        """

    def check_topic(self, entry: str) -> None:
        """Check that the broker accepts a name or a pattern.

        Raises:
            TopicError: the broker does not accept the name; the text gives the reason.
        """

    @property
    def is_connected(self) -> bool:
        """Whether the connection to publish on is open."""

    @property
    def published(self) -> Iterator[TopicCounter]:
        """The counters of the topics that the bus has published on, of which the least recently used can be evicted."""

    def publisher(self, topic: str, name: str | None, *, keeps: bool, creates: bool = True) -> TopicPublisher:
        """Make a publisher on ``topic``.

        Args:
            topic: the topic's name on the broker.
            name: stable name that selects the partition of messages without a key; ``None`` spreads them.
            keeps: whether the topic's counter must not be evicted until the publisher is closed.
            creates: whether a topic of a log is created if it does not exist; ``False`` holds until a publisher that creates it
                is made, and sending to a missing topic raises `TopicError`.
        """

    async def subscribe(self, selection: Selection, inbox: Inbox) -> Consumer:
        """Subscribe; returns once the broker has confirmed.

        Raises:
            ConnectionLostError: not confirmed within ``connect_timeout``.
            AuthenticationError: the broker refused the subscription.
        """

    async def flush(self) -> None:
        """Wait until every published message is confirmed, within ``publish_timeout``.

        Raises:
            PublishTimeoutError: not confirmed in time.
        """

    async def ping(self) -> None:
        """Wait for one response of the broker, within ``pong_timeout``.

        Raises:
            ConnectionLostError: the broker did not respond, or the bus is disconnected.
        """

    def abort_at(self, when: float | None) -> None:
        """Stop waiting for the broker at ``when``, in seconds of the event loop's clock; ``None`` revokes an earlier call.

        At that time, everything that is not confirmed fails with `ConnectionLostError`, and the backend does not reconnect.
        """

    async def close(self) -> None:
        """Release all resources within a deadline, even if the broker does not answer."""


@runtime_checkable
class PresenceBackend(Protocol):
    """A backend whose broker can be asked whether a topic has subscribers."""

    @property
    def can_subscribe(self) -> bool:
        """Whether the shared subscribing connection is open, so that a new subscription opens none."""

    async def has_subscribers(self, topic: str) -> bool | None:
        """Return whether a topic has a subscriber; ``None`` if unknown. Raises nothing."""


@runtime_checkable
class DeadLetterBackend(Protocol):
    """A backend that publishes a received record unchanged, with binary keys and headers, repeated headers, or no value."""

    async def dead_letter(self, message: Message, topic: str, why: Mapping[str, str]) -> bool:
        """Publish a message of this backend on a dead-letter topic, with the additional headers ``why``.

        A message that is too large with its own headers is published without them, marked with ``msight-dead-headers``.

        Returns:
            Whether the message was published; if not, the reason was logged, and a retry would fail too.

        Raises:
            PublishTimeoutError, ConnectionLostError: the broker is down.
        """


class Opener(Protocol):
    """A function that makes a backend without connecting it, as `msight_bus.backends.make_backend`."""

    def __call__(
        self, settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
    ) -> Backend:
        """Make a backend.

        Args:
            settings: the settings of the bus.
            report: called with each event.
            new_session: returns a random session id.
        """
