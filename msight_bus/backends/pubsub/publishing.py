"""The topics that a bus publishes on, and its publishers on them.

All publishers on a topic share its counter. Counters are bounded: of those that nobody holds, the least recently used goes
when its last sequence has been announced, and the topic's next message begins a new session.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

from msight_bus.backends.base import BLOCKED, Blocked
from msight_bus.backends.pubsub.in_flight import UnconfirmedRun
from msight_bus.backends.pubsub.reconnecting import ReconnectingConnection
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError, fresh
from msight_bus.events import BusEvent, Refused
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.settings import Limits

logger = logging.getLogger("msight_bus")

_RECENTLY = 60.0
"""Seconds. That a counter goes which was used so lately is worth a warning."""


_A_TURN = 2000
"""Topics that are looked at, announced or forgotten together."""

_WAITING = 10_000
"""Topics above the limit that may wait for their announcement."""

_SESSIONS = 1000
"""Sessions of its own that a bus remembers."""


class PublishedTopic:
    """One topic that this bus publishes on.

    Attributes:
        counter: its session and last sequence.
        publishers: who publishes on it.
        kept: how many of them keep its counter.
        active: whether something was published since the last look.
        used_at: when that was first so, by the loop's clock, in seconds.
        announced: the last sequence that was announced.
        due: the look at which it is announced next.
        pause: looks to the announcement after that.
        forgotten: its counter is gone, after its last announcement.
    """

    __slots__ = ("active", "announced", "counter", "due", "forgotten", "kept", "pause", "publishers", "used_at")

    def __init__(self, counter: TopicCounter) -> None:
        self.counter = counter
        self.publishers: list[PubSubPublisher] = []
        self.kept = 0
        self.active = False
        self.used_at = 0.0
        self.announced = 0
        self.due = 0
        self.pause = 1
        self.forgotten = False


class Announces(Protocol):
    """Announces the last sequences of topics (tail_loss.Announcer).

    Attributes:
        works: whether announcing is permitted, as far as is known.
    """

    works: bool

    def touched(self, topic: PublishedTopic) -> None:
        """Something was published on the topic, for the first time since the last look."""

    def announce_now(self, topics: list[PublishedTopic]) -> bool:
        """Announce the topics; returns whether that was possible."""


class PublishedTopics:
    """Every topic that this bus publishes on, the least recently used first.

    Attributes:
        crowded: whether there are so many that their order of use counts.
    """

    def __init__(self, limit: int, new_session: Callable[[], int], announcer: Announces | None) -> None:
        self._limit = limit
        self._new_session = new_session
        self._announcer = announcer
        self._topics: OrderedDict[str, PublishedTopic] = OrderedDict()
        self._session = 0
        self._sessions: set[int] = set()
        self._forgotten: bool = True
        self.crowded = False
        self._warned = False
        self._most = 0

    def get(self, name: str) -> PublishedTopic:
        """The topic of this name."""
        topic = self._topics.get(name)
        if topic is None:
            if self._forgotten:  # a topic that was forgotten must not go on at sequence 1 of its old session
                self._session = self._new_session() or 1
                if len(self._sessions) >= _SESSIONS:
                    self._sessions.clear()
                self._sessions.add(self._session)
                self._forgotten = False
            topic = self._topics[name] = PublishedTopic(TopicCounter(name, self._session))
            self._most = max(self._most, len(self._topics))
            self.crowded = len(self._topics) > self._limit // 2
            if len(self._topics) > self._limit + (0 if self._announcer is None else _WAITING):
                self.trim(new=topic)
        return topic

    def is_own(self, session: int) -> bool:
        """Whether a session is one of this bus's."""
        return session in self._sessions

    def known(self, name: str) -> PublishedTopic | None:
        """The topic of this name, if the bus publishes on it."""
        return self._topics.get(name)

    def use(self, name: str) -> PublishedTopic:
        """Something is published on the topic: for the first time since the last look, or since it was forgotten, or where
        counters are so many that their order of use counts."""
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
        """Every topic, the least recently used first."""
        return list(self._topics.values())

    def trim(self, new: PublishedTopic | None = None) -> None:
        """Forget topics above the limit but ``new``, the least recently used first; called after each look of the announcer."""
        for _ in range(min(len(self._topics) - self._limit, _A_TURN)):
            topic = self._oldest(new)
            if topic is None:
                return
            del self._topics[topic.counter.topic]
            topic.forgotten = True
            topic.active = False  # so that a publisher that comes back to it takes the new one
            self._forgotten = True
            self._warn_if_used_recently(topic)
        if len(self._topics) == self._limit < self._most // 8:  # a dictionary keeps the room of its largest time
            self._topics = OrderedDict(self._topics)
            self._most = self._limit

    def _warn_if_used_recently(self, topic: PublishedTopic) -> None:
        age = asyncio.get_running_loop().time() - topic.used_at
        if not self._warned and topic.used_at and age < _RECENTLY:
            self._warned = True
            logger.warning(
                "Published on more than %d topics: the counter of %r, used %.0f s ago, was forgotten, and losses on such "
                "topics may go unnoticed. MSIGHT_PUBLISHER_TOPICS sets how many are kept.",
                self._limit,
                topic.counter.topic,
                age,
            )

    def _oldest(self, new: PublishedTopic | None) -> PublishedTopic | None:
        """The least recently used topic but ``new`` that nobody keeps and whose last sequence was announced."""
        for _ in range(_A_TURN):
            name, topic = next(iter(self._topics.items()))
            if topic.kept or topic is new:  # which is about to be kept
                self._topics.move_to_end(name)
            elif topic.announced == topic.counter.sequence or self._announce_first():
                return topic
            else:
                return None
        return None

    def _announce_first(self) -> bool:
        """Announce the first topics out of turn, where far too many wait for that; returns whether it was possible."""
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
        "_cut",
        "_keeps",
        "_limits",
        "_reason",
        "_refused",
        "_report",
        "_topic",
        "_topics",
        "run",
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
        """``keeps``: the topic's counter is kept until the publisher is closed."""
        self._topics = topics
        self._keeps = keeps
        self._topic = topics.get(name)
        self._join()
        self._connection = connection
        self._limits = limits
        self._report = report
        self._refused: BusError | None = None
        self._cut = 0
        self._reason: BusError | None = None
        self.run: UnconfirmedRun | None = None

    def try_send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> Blocked | None:
        """Hand one message to the connection, if it takes one now and nobody waits."""
        if self._refused is not None:
            self._raise_refused()
        owner = self._connection
        connection = owner.connection
        if connection is None or connection.congested or owner.gate.waiting:
            return BLOCKED
        topic = self._topic
        if not topic.active or self._topics.crowded:
            topic = self._use_topic()
        connection.publish(self, topic.counter, payload, key, headers)
        return None

    async def send(self, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Hand one message to the connection when it is open, has room and others have had their turn."""
        within = self._limits.publish_timeout
        owner = self._connection
        try:
            async with owner.gate.turn(within):
                connection = await owner.writable()
                if self._refused is not None:
                    self._raise_refused()
                topic = self._use_topic()
                connection.publish(self, topic.counter, payload, key, headers)
        except TimeoutError as error:
            if isinstance(error, BusError):
                raise
            state = "is not connected" if owner.connection is None else "takes no more data"
            raise PublishTimeoutError(
                f"The broker {state} for {within:g} s now (MSIGHT_PUBLISH_TIMEOUT); nothing was sent."
            ) from owner.reason

    async def flush(self) -> None:
        """Round trip to the broker, then raise what went wrong."""
        within = self._limits.publish_timeout
        if not await self._connection.confirm(within):
            raise PublishTimeoutError(
                f"The broker has not confirmed what was published within {within:g} s; it may still arrive."
            )
        if self._refused is not None:
            self._raise_refused()
        if self._cut:
            count, self._cut = self._cut, 0
            raise ConnectionLostError(
                f"{count} messages on {self._topic.counter.topic!r} were written before the connection was cut and never "
                "confirmed."
            ) from self._reason

    def close(self) -> None:
        """Send no more."""
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
        """The topic, which may have been forgotten since it was used last."""
        topic = self._topics.use(self._topic.counter.topic)
        if topic is not self._topic:
            self._leave()
            self._topic = topic
            self._join()
        return topic

    # -- what the connection tells (in_flight.Sender)

    def refused(self, error: BusError) -> None:
        """The broker refused a message that was handed over before."""
        name = self._topic.counter.topic
        if self._refused is None:
            logger.warning("The broker refused a message on %s: %s", name, error)
            self._refused = error
        self._report(Refused(name, str(error)))

    def cut(self, count: int, reason: BusError) -> None:
        """The connection was lost before ``count`` messages were confirmed."""
        self._cut += count
        self._reason = reason

    @property
    def has_unconfirmed(self) -> bool:
        """Whether a message of this publisher was written and not confirmed."""
        return self.run is not None and self.run.count > 0

    def _raise_refused(self) -> None:
        error, self._refused = self._refused, None
        if error is not None:
            raise fresh(error)
