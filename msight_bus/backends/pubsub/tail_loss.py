"""The last messages before a silence: no later message reveals their loss, so the publisher says what its last ones were.

One message a bus on the reserved topic ``_msight.seq``, for topics that have gone quiet: MessagePack
``[session, {topic: last sequence}]``. It takes the same way as the messages that it follows, so a subscriber
listens for it on each connection that carries subscriptions. It is repeated, ever more rarely, because whoever is reconnecting
does not hear it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from msight_bus.backends.base import TopicStream
from msight_bus.backends.pubsub.publishing import PublishedTopic
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.message import Message
from msight_bus.topics import SEQUENCE_TOPIC

logger = logging.getLogger("msight_bus")

_TOPICS_A_MESSAGE = 500
_TOPICS_A_TURN = 2000
"""Topics that are announced in one turn of the loop."""

_MAX_BYTES = 256 * 1024
"""Of an announcement that is read: twice what `_TOPICS_A_MESSAGE` of the longest names take."""

_SILENT_FOR = 10.0
"""Seconds of silence, at least, after which a missing announcement is suspicious."""

_RAREST = 32
"""Looks between two announcements of a topic that has long been quiet."""

_U64 = Annotated[int, msgspec.Meta(ge=0)]
_Announcement = tuple[_U64, dict[str, _U64]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Announcement).decode


class Announcer:
    """Says the last sequences of topics that have gone quiet (publishing.Announces).

    Attributes:
        after_look: called after each look.
        works: whether announcing is permitted, as far as is known.
        others_come: whether announcements of others come, as far as is known.
    """

    def __init__(self, send: Callable[[bytes], bool], interval: float) -> None:
        """``send`` hands a message on the reserved topic over, and tells whether it could; ``interval`` is in seconds."""
        self._send = send
        self._interval = interval
        self._touched: list[PublishedTopic] = []
        self._due: dict[int, list[PublishedTopic]] = {}  # by look
        self._looks = 0
        self.after_look: Callable[[], None] = lambda: None
        self.works = True
        self.others_come = True
        self._heard_others = False

    def touched(self, topic: PublishedTopic) -> None:
        """Something was published on the topic, for the first time since the last look."""
        self._touched.append(topic)

    async def run(self) -> None:
        """Look at each interval, for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self._look()
            self.after_look()

    def heard_other(self) -> None:
        """An announcement of another bus has come."""
        self._heard_others = True
        if not self.others_come:
            self.others_come = True
            logger.info("Announcements come on %s, so that tail losses are noticed again.", SEQUENCE_TOPIC)

    def notice_silence(self, topic: str, seconds: float) -> None:
        """A publisher that was followed has been silent for ``seconds`` and has not announced its last sequence."""
        if seconds < max(_SILENT_FOR, 10 * self._interval) or self._heard_others or not self.others_come:
            return
        self.others_come = False
        logger.warning(
            "A publisher on %s has been silent for %.0f s, and no announcement of a last sequence has ever come on %s: either "
            "it has ended abruptly, or the broker does not pass that topic on (a NATS account has to import it). Until one "
            "comes, losses of a publisher's last messages before a silence go unnoticed.",
            topic,
            seconds,
            SEQUENCE_TOPIC,
        )

    async def _look(self) -> None:
        self._looks += 1
        touched, self._touched = self._touched, []
        for start in range(0, len(touched), _TOPICS_A_TURN):
            for topic in touched[start : start + _TOPICS_A_TURN]:
                topic.active = False
                topic.pause = 1
                if not topic.forgotten:
                    self._schedule(topic, 1)
            await asyncio.sleep(0)
        due = self._due.pop(self._looks, [])
        for start in range(0, len(due), _TOPICS_A_TURN):
            part = due[start : start + _TOPICS_A_TURN]
            quiet = [t for t in part if t.due == self._looks and not t.active and not t.forgotten]
            if self.announce_now(quiet):
                for topic in quiet:
                    self._schedule(topic, topic.pause)
                    topic.pause = min(2 * topic.pause, _RAREST)
            elif self.works:
                for topic in quiet:
                    self._schedule(topic, 1)
            await asyncio.sleep(0)

    def _schedule(self, topic: PublishedTopic, looks: int) -> None:
        topic.due = self._looks + looks
        self._due.setdefault(topic.due, []).append(topic)

    def announce_now(self, topics: list[PublishedTopic]) -> bool:
        """Announce topics; returns whether that was possible for all."""
        sessions: dict[int, dict[str, int]] = {}
        for topic in topics:
            sessions.setdefault(topic.counter.session, {})[topic.counter.topic] = topic.counter.sequence
        for session, sequences in sessions.items():
            names = list(sequences)
            for start in range(0, len(names), _TOPICS_A_MESSAGE):
                part = {name: sequences[name] for name in names[start : start + _TOPICS_A_MESSAGE]}
                if not self.works or not self._send(_encode((session, part))):
                    return False
        for topic in topics:
            topic.announced = topic.counter.sequence
        return True

    async def announce_last(self, topics: list[PublishedTopic], within: float) -> None:
        """Announce every topic once more, at the end; first those that were not announced yet."""
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
                "Closed before the last sequences of %d topics were announced, so that a loss of their last messages goes "
                "unnoticed.",
                unannounced,
            )

    def refused(self, error: BusError) -> None:
        """The broker refused an announcement, or to listen for them: where that is a permission, say so once and stop."""
        if self.works and isinstance(error, AuthenticationError):
            self.works = False
            logger.warning(
                "Losses of a publisher's last messages before a silence go unnoticed, because the broker does not permit the "
                "topic %s: %s",
                SEQUENCE_TOPIC,
                error,
            )


class AnnouncementStream:
    """Receives the announcements of one connection (backends.base.TopicStream)."""

    def __init__(self, streams: Callable[[str], Iterable[TopicStream]], on_session: Callable[[int], None]) -> None:
        """``streams`` gives the subscribed streams of a topic on this connection; ``on_session`` gets who announces."""
        self._streams = streams
        self._on_session = on_session

    def deliver(self, batch: list[Message]) -> None:
        """Tell each stream what concerns it; what is no announcement is ignored."""
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

    def announced(self, session: int, highest: int) -> None:
        """Announcements are not announced."""

    def silence(self) -> float:
        """Nobody is followed here."""
        return 0.0

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """A missed announcement is made up for by the next one."""
