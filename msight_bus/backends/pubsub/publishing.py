"""The publishers of a bus, and the sequence counters of the topics that they publish on.

All publishers on a topic share its counter. The number of counters is bounded: of the topics that no publisher keeps, the least
recently used one is evicted once its last sequence was announced. The topic's next message begins a new session.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping

from msight_bus.backends.base import BLOCKED, Blocked
from msight_bus.backends.pubsub.in_flight import UnconfirmedRun
from msight_bus.backends.pubsub.reconnecting import ReconnectingConnection
from msight_bus.backends.pubsub.tail_loss import PublishedTopic, SequenceAnnouncer
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError, counted, fresh
from msight_bus.events import BusEvent, Refused
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.settings import Limits

logger = logging.getLogger("msight_bus")

_RECENTLY = 60.0
"""Seconds since its last use within which the eviction of a counter is logged as a WARNING."""


_A_TURN = 2000
"""Maximum number of topics examined, announced or evicted at once."""

_WAITING = 10_000
"""Maximum number of topics above the limit that wait for their announcement before the eviction."""

_SESSIONS = 1000
"""Maximum number of own session ids that a bus keeps."""


class PublishedTopics:
    """The topics that this bus publishes on, the least recently used first.

    Attributes:
        crowded: whether more than half of the maximum number of topics are kept, so that each use must be recorded.
    """

    def __init__(self, limit: int, new_session: Callable[[], int], announcer: SequenceAnnouncer | None) -> None:
        self._limit = limit
        self._new_session = new_session
        self._announcer = announcer
        self._topics: OrderedDict[str, PublishedTopic] = OrderedDict()
        self._session = 0
        self._sessions: set[int] = set()
        self._new_session_due: bool = True
        self.crowded = False
        self._warned = False
        self._most = 0

    def get(self, name: str) -> PublishedTopic:
        """Return the topic; made at the first call."""
        topic = self._topics.get(name)
        if topic is None:
            if self._new_session_due:  # an evicted topic must not begin at sequence 1 of its old session
                self._session = self._new_session() or 1
                if len(self._sessions) >= _SESSIONS:
                    self._sessions.clear()
                self._sessions.add(self._session)
                self._new_session_due = False
            topic = self._topics[name] = PublishedTopic(TopicCounter(name, self._session))
            self._most = max(self._most, len(self._topics))
            self.crowded = len(self._topics) > self._limit // 2
            if len(self._topics) > self._limit + (0 if self._announcer is None else _WAITING):
                self.trim(new=topic)
        return topic

    def is_own(self, session: int) -> bool:
        """Return whether ``session`` is a session of this bus."""
        return session in self._sessions

    def known(self, name: str) -> PublishedTopic | None:
        """Return the topic, ``None`` if the bus does not publish on the topic."""
        return self._topics.get(name)

    def use(self, name: str) -> PublishedTopic:
        """Record a use of the topic, and return the topic.

        Called before a message is published: for the first message since the announcer's last scan or since the topic was
        evicted, and for each message while `crowded`.
        """
        topic = self.get(name)
        topic.used_at = asyncio.get_running_loop().time()
        self._topics.move_to_end(name)
        if topic.active:
            return topic
        topic.active = True
        if self._announcer is not None:
            self._announcer.touched(topic)
        else:
            topic.announced = topic.counter.sequence
        return topic

    @property
    def all(self) -> list[PublishedTopic]:
        """All topics, the least recently used first."""
        return list(self._topics.values())

    def trim(self, new: PublishedTopic | None = None) -> None:
        """Evict topics above the limit, except ``new``, the least recently used first; called after each scan."""
        for _ in range(min(len(self._topics) - self._limit, _A_TURN)):
            topic = self._oldest(new)
            if topic is None:
                return
            del self._topics[topic.counter.topic]
            topic.evicted = True
            topic.active = False  # its publishers then get the new topic with their next message
            self._new_session_due = True
            self._warn_if_used_recently(topic)
        if len(self._topics) == self._limit < self._most // 8:  # a dictionary never shrinks by itself
            self._topics = OrderedDict(self._topics)
            self._most = self._limit

    def _warn_if_used_recently(self, topic: PublishedTopic) -> None:
        age = asyncio.get_running_loop().time() - topic.used_at
        if not self._warned and topic.used_at and age < _RECENTLY:
            self._warned = True
            logger.warning(
                "Topic counter evicted: more than %d topics, %r was used %.0f s ago; losses on evicted topics may not be "
                "detected. MSIGHT_PUBLISHER_TOPICS sets the limit.",
                self._limit,
                topic.counter.topic,
                age,
            )

    def _oldest(self, new: PublishedTopic | None) -> PublishedTopic | None:
        """Return the least recently used topic that can be evicted: not ``new``, not kept, its last sequence announced."""
        for _ in range(_A_TURN):
            name, topic = next(iter(self._topics.items()))
            if topic.kept or topic is new:  # ``new`` is about to be kept
                self._topics.move_to_end(name)
            elif topic.announced == topic.counter.sequence or self._announce_first():
                return topic
            else:
                return None
        return None

    def _announce_first(self) -> bool:
        """Announce the oldest topics now if more than `_WAITING` wait for it; return whether one can be evicted."""
        if self._announcer is None or not self._announcer.works:
            return True
        if len(self._topics) <= self._limit + _WAITING:
            return False
        first = [topic for _, topic in zip(range(_A_TURN), self._topics.values(), strict=False)]
        return self._announcer.announce_now([t for t in first if t.announced != t.counter.sequence])


class PubSubPublisher:
    """One publisher on one topic (backends.base.TopicPublisher, in_flight.Sender)."""

    __slots__ = (
        "_connection",
        "_keeps",
        "_limits",
        "_reason",
        "_refused",
        "_report",
        "_topic",
        "_topics",
        "_unconfirmed_lost",
        "_waiting",
        "on_refused",
        "unconfirmed",
    )

    def __init__(
        self,
        topics: PublishedTopics,
        name: str,
        connection: ReconnectingConnection,
        limits: Limits,
        report: Callable[[BusEvent], None],
        *,
        keeps: bool,
    ) -> None:
        """
        Args:
            topics: the topics that the bus publishes on.
            name: the topic's name on the broker.
            connection: the connection to publish on.
            limits: deadlines.
            report: called with an event when a message is refused.
            keeps: whether the topic's counter must not be evicted until the publisher is closed.
        """
        self._topics = topics
        self._keeps = keeps
        self._topic = topics.get(name)
        self._join()
        self._connection = connection
        self._limits = limits
        self._report = report
        self._refused: BusError | None = None
        self.on_refused: Callable[[BusError, int], None] | None = None
        self._unconfirmed_lost = 0
        self._reason: BusError | None = None
        self.unconfirmed: UnconfirmedRun | None = None
        self._waiting = 0

    @property
    def counter(self) -> TopicCounter:
        """Session and sequence of the topic's last message."""
        return self._topic.counter

    def try_send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Blocked | None:
        """Write one message, if the connection is open and not congested, and no other publisher waits."""
        if self._refused is not None:
            self._raise_refused()
        owner = self._connection
        connection = owner.connection
        if connection is None or connection.congested:
            return BLOCKED
        # A turn lasts until the connection is congested again: a turn for each message would cost each an iteration.
        if owner.gate.waiting and (owner.turn is not self or self._waiting):
            return BLOCKED
        topic = self._topic
        if not topic.active or self._topics.crowded:
            topic = self._use_topic()
        connection.publish(self, topic.counter, payload, key, headers)
        return None

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Write one message once the connection is open and not congested, in the order of the calls.

        Raises:
            PublishTimeoutError: not written within ``publish_timeout``; nothing was sent.
            BusError: an earlier message was refused, or the bus will not reconnect; nothing was sent.
        """
        within = self._limits.publish_timeout
        owner = self._connection
        self._waiting += 1
        try:
            async with owner.gate.turn(within):
                connection = await owner.writable()
                owner.turn = self
                if self._refused is not None:
                    self._raise_refused()
                topic = self._use_topic()
                connection.publish(self, topic.counter, payload, key, headers)
        except TimeoutError as error:
            if isinstance(error, BusError):
                raise
            state = "not connected" if owner.connection is None else "write buffer full"
            raise PublishTimeoutError(
                f"Message not sent: {state} for {within:g} s (MSIGHT_PUBLISH_TIMEOUT)."
            ) from owner.reason
        finally:
            self._waiting -= 1

    async def flush(self) -> None:
        """Wait for a round trip, then raise a refusal or report unconfirmed messages (`TopicPublisher.flush`)."""
        await self._connection.confirm()
        if self._refused is not None:
            self._raise_refused()
        if self._unconfirmed_lost:
            count, self._unconfirmed_lost = self._unconfirmed_lost, 0
            raise ConnectionLostError(
                f"{counted(count, 'message')} on {self._topic.counter.topic!r} written before a disconnect and never confirmed; "
                "at most these are lost. Publishing again may duplicate."
            ) from self._reason

    def close(self) -> None:
        """Close the publisher."""
        self._refused = None
        self._leave()

    def _join(self) -> None:
        self._topic.publishers.append(self)
        self._topic.kept += self._keeps

    def _leave(self) -> None:
        if self in self._topic.publishers:
            self._topic.publishers.remove(self)
            self._topic.kept -= self._keeps

    def _use_topic(self) -> PublishedTopic:
        """Record a use of the topic; get the new topic if the old one was evicted."""
        topic = self._topics.use(self._topic.counter.topic)
        if topic is not self._topic:
            self._leave()
            self._topic = topic
            self._join()
        return topic

    # -- called by the connection (in_flight.Sender)

    def refused(self, error: BusError) -> None:
        """Log and report the refusal of a message; pass the error on, or keep it for the next call."""
        name = self._topic.counter.topic
        if self.on_refused is not None:
            self.on_refused(error, 1)
        elif self._refused is None:
            logger.warning("Message refused on %s: %s", name, error)
            self._refused = error
        self._report(Refused(name, str(error)))

    def connection_lost(self, count: int, reason: BusError) -> None:
        """Count messages that were never confirmed, for the error of `flush`."""
        self._unconfirmed_lost += count
        self._reason = reason

    def _raise_refused(self) -> None:
        error, self._refused = self._refused, None
        if error is not None:
            raise fresh(error)
