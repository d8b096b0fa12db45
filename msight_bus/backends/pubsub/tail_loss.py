"""Tail-loss detection: an idle publisher announces its last sequence numbers, because no later message would reveal a loss.

A bus announces the topics that have become idle in one message on the reserved topic ``_msight.seq``: MessagePack
``[session, {topic: last sequence}]``. The announcement must not overtake the messages before it, so each connection that carries
subscriptions also subscribes to announcements. An announcement is repeated with growing intervals, because a subscriber that is
reconnecting does not receive it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from msight_bus.backends.base import Inbox, TopicStream
from msight_bus.backends.pubsub.in_flight import Sender, UnconfirmedRun
from msight_bus.backends.pubsub.routes import Route, UncountedStream
from msight_bus.errors import AuthenticationError, BusError, counted
from msight_bus.message import Message
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.topics import SEQUENCE_TOPIC

logger = logging.getLogger("msight_bus")

_TOPICS_A_MESSAGE = 500
_TOPICS_A_TURN = 2000
"""Maximum number of topics announced in one event loop iteration."""

_MAX_BYTES = 256 * 1024
"""Maximum bytes of an announcement that is decoded: twice the size of `_TOPICS_A_MESSAGE` topics with the longest names."""

_SILENT_FOR = 10.0
"""Minimum seconds of silence after which a missing announcement is reported."""

_RAREST = 32
"""Maximum number of scans between two announcements of a topic."""

_U64 = Annotated[int, msgspec.Meta(ge=0)]
_Announcement = tuple[_U64, dict[str, _U64]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Announcement).decode


class PublishedTopic:
    """One topic that this bus publishes on.

    Attributes:
        counter: the topic's session and last sequence.
        publishers: the publishers on the topic.
        kept: number of publishers that keep the counter from eviction.
        active: whether a message was published since the announcer's last scan.
        used_at: time of the first such message, in seconds of the loop's clock.
        announced: the last sequence that was announced.
        due: number of the scan that announces the topic next.
        pause: number of scans between the next announcement and the one after.
        evicted: whether the counter was evicted.
    """

    __slots__ = ("active", "announced", "counter", "due", "evicted", "kept", "pause", "publishers", "used_at")

    def __init__(self, counter: TopicCounter) -> None:
        self.counter = counter
        self.publishers: list[Sender] = []
        self.kept = 0
        self.active = False
        self.used_at = 0.0
        self.announced = 0
        self.due = 0
        self.pause = 1
        self.evicted = False


class SequenceAnnouncer:
    """The announcer of the last sequences of idle topics (in_flight.Sender).

    Topics are scanned once each ``announce_interval``.

    Attributes:
        after_scan: called after each scan.
        works: false once the broker has refused an announcement for lack of permission.
        others_come: false while announcements of other buses appear to be lost.
        unconfirmed: the latest announcements.
    """

    def __init__(self, send: Callable[[Sender, bytes], bool], interval: float) -> None:
        """
        Args:
            send: publishes an announcement of a sender; returns false if the connection cannot take the message now.
            interval: seconds between two scans.
        """
        self._send = send
        self._interval = interval
        self._touched: list[PublishedTopic] = []
        self._due: dict[int, list[PublishedTopic]] = {}  # by scan
        self._scans = 0
        self.after_scan: Callable[[], None] = lambda: None
        self.unconfirmed: UnconfirmedRun | None = None
        self.works = True
        self.others_come = True
        self._heard_others = False

    def touched(self, topic: PublishedTopic) -> None:
        """Note the first message published on the topic since the last scan."""
        self._touched.append(topic)

    async def run(self) -> None:
        """Scan at each interval; never returns."""
        while True:
            await asyncio.sleep(self._interval)
            await self._scan()
            self.after_scan()

    def heard_other(self) -> None:
        """Note that an announcement of another bus arrived."""
        self._heard_others = True
        if not self.others_come:
            self.others_come = True
            logger.info("Tail-loss detection works again: announcements arrive on %s.", SEQUENCE_TOPIC)

    def notice_silence(self, topic: str, seconds: float) -> None:
        """Warn, once, that a publisher on ``topic`` has been silent for ``seconds`` without announcing its last sequence."""
        if seconds < max(_SILENT_FOR, 10 * self._interval) or self._heard_others or not self.others_come:
            return
        self.others_come = False
        logger.warning(
            "Tail-loss detection may not work: a publisher on %s has been silent for %.0f s, and no announcement has arrived on "
            "%s. Either the publisher was killed, or the broker does not deliver that topic (a NATS account has to import it).",
            topic,
            seconds,
            SEQUENCE_TOPIC,
        )

    async def _scan(self) -> None:
        self._scans += 1
        touched, self._touched = self._touched, []
        for start in range(0, len(touched), _TOPICS_A_TURN):
            for topic in touched[start : start + _TOPICS_A_TURN]:
                topic.active = False
                topic.pause = 1
                if not topic.evicted:
                    self._schedule(topic, 1)
            await asyncio.sleep(0)
        due = self._due.pop(self._scans, [])
        for start in range(0, len(due), _TOPICS_A_TURN):
            part = due[start : start + _TOPICS_A_TURN]
            quiet = [t for t in part if t.due == self._scans and not t.active and not t.evicted]
            if self.announce_now(quiet):
                for topic in quiet:
                    self._schedule(topic, topic.pause)
                    topic.pause = min(2 * topic.pause, _RAREST)
            elif self.works:
                for topic in quiet:
                    self._schedule(topic, 1)
            await asyncio.sleep(0)

    def _schedule(self, topic: PublishedTopic, scans: int) -> None:
        topic.due = self._scans + scans
        self._due.setdefault(topic.due, []).append(topic)

    def announce_now(self, topics: list[PublishedTopic]) -> bool:
        """Announce the last sequences of topics; return whether all were sent."""
        sessions: dict[int, dict[str, int]] = {}
        for topic in topics:
            sessions.setdefault(topic.counter.session, {})[topic.counter.topic] = topic.counter.sequence
        for session, sequences in sessions.items():
            names = list(sequences)
            for start in range(0, len(names), _TOPICS_A_MESSAGE):
                part = {name: sequences[name] for name in names[start : start + _TOPICS_A_MESSAGE]}
                if not self.works or not self._send(self, _encode((session, part))):
                    return False
        for topic in topics:
            topic.announced = topic.counter.sequence
        return True

    async def announce_last(self, topics: list[PublishedTopic], within: float) -> None:
        """Announce topics a last time, within ``within`` seconds; beginning with topics that were never announced."""
        left = sorted(topics, key=lambda topic: topic.announced == topic.counter.sequence)
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while left and self.works and loop.time() < end:
            if self.announce_now(left[:_TOPICS_A_TURN]):
                del left[:_TOPICS_A_TURN]
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.01)
        unannounced = sum(topic.announced != topic.counter.sequence for topic in left)
        if unannounced and self.works:
            logger.warning(
                "Last sequences of %s not announced before closing; a loss of their last messages is not detected.",
                counted(unannounced, "topic"),
            )

    def refused(self, error: BusError) -> None:
        """Stop announcing, and warn once, if the broker does not permit publishing or subscribing to announcements."""
        if self.works and isinstance(error, AuthenticationError):
            self.works = False
            logger.warning(
                "Tail-loss detection is off: the broker does not permit the topic %s: %s",
                SEQUENCE_TOPIC,
                error,
            )

    def connection_lost(self, count: int, reason: BusError) -> None:
        """Do nothing: the next announcement replaces a lost one."""


class AnnouncementSubscriber(UncountedStream):
    """The subscription to announcements on one connection (reconnecting.Subscriber, backends.base.TopicStream)."""

    paused = False

    def __init__(
        self,
        streams: Callable[[str], Iterable[TopicStream]],
        on_session: Callable[[int], None],
        on_refused: Callable[[BusError], None],
    ) -> None:
        """
        Args:
            streams: returns the streams of a topic on this connection.
            on_session: called with the session of each announcement.
            on_refused: called when the broker revokes the permission to subscribe.
        """
        self.inbox: Inbox | None = None
        self.routes = [Route(SEQUENCE_TOPIC, None, self, on_refused)]
        self._streams = streams
        self._on_session = on_session

    def deliver(self, batch: list[Message]) -> None:
        """Pass announcements to the streams of their topics; ignore messages that cannot be decoded."""
        for message in batch:
            if len(message.payload) > _MAX_BYTES:
                continue
            try:
                session, sequences = _decode(message.payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            self._on_session(session)
            for topic, highest in sequences.items():
                for stream in self._streams(topic):
                    stream.announced(session, highest)
