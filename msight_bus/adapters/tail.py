"""The last messages before a silence: no later message reveals their loss, so the publisher says what its last ones were.

One message a bus on the reserved topic ``_msight.seq``, for the topics that have gone quiet since the last look:
MessagePack ``[session, {topic: last sequence}]``. It takes the same way as the messages that it follows, so a subscriber
listens for it on each connection that carries subscriptions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

import msgspec

from msight_bus.adapters.base import Sink, Stamp
from msight_bus.errors import BusError
from msight_bus.message import Message
from msight_bus.topics import SEQUENCE_TOPIC

logger = logging.getLogger("msight_bus")

_TOPICS_A_MESSAGE = 500
_RAREST = 32
"""Looks between two announcements of a topic that has long been quiet."""
_U64 = Annotated[int, msgspec.Meta(ge=0)]
_Announcement = tuple[_U64, dict[str, _U64]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Announcement).decode


class Announcer:
    """Says the last sequences of topics that have gone quiet.

    Attributes:
        works: whether announcing is permitted, as far as is known.
    """

    def __init__(self, stamp: Stamp, send: Callable[[bytes], bool]) -> None:
        """``send`` hands a message on the reserved topic over, and tells whether it could."""
        self._stamp = stamp
        self._send = send
        self._before: dict[str, int] = {}
        self._looks = 0
        self._due: dict[
            str, tuple[int, int]
        ] = {}  # topic: the look at which it is announced next, looks to the one after
        self.works = True

    async def run(self, interval: float) -> None:
        """Look every ``interval`` seconds, for ever."""
        while True:
            await asyncio.sleep(interval)
            self.look()

    def look(self, *, last: bool = False) -> None:
        """Announce what is quiet, ever more rarely while it stays so; with ``last`` everything, at the end."""
        self._looks += 1
        now = dict(self._stamp.last)
        now.pop(SEQUENCE_TOPIC, None)
        quiet = {topic: sequence for topic, sequence in now.items() if last or self._before.get(topic) == sequence}
        for topic in self._due.keys() - quiet.keys():
            del self._due[topic]
        self._before = now
        due = [item for item in quiet.items() if last or self._due.get(item[0], (0, 1))[0] <= self._looks]
        for start in range(0, len(due), _TOPICS_A_MESSAGE):
            part = dict(due[start : start + _TOPICS_A_MESSAGE])
            if not self.works or not self._send(_encode((self._stamp.session, part))):
                return
            for topic in part:  # again and again, because whoever is reconnecting now does not hear it
                _, pause = self._due.get(topic, (0, 1))
                self._due[topic] = self._looks + pause, min(2 * pause, _RAREST)

    def refused(self, error: BusError) -> None:
        """The broker does not permit it: say so once."""
        if self.works:
            self.works = False
            logger.warning(
                "Losses of a publisher's last messages before a silence go unnoticed, because the broker does not permit the "
                "topic %s: %s",
                SEQUENCE_TOPIC,
                error,
            )


class Listener(Protocol):
    """A subscription that announcements may concern."""

    topic: str
    sink: Sink


class TailSink:
    """Receives the announcements of one connection (adapters.base.Sink)."""

    room = 1

    def __init__(self, listeners: Sequence[Listener], on_refused: Callable[[BusError], None]) -> None:
        self._listeners = listeners
        self._on_refused = on_refused

    def deliver(self, batch: list[Message]) -> None:
        """Tell each subscription what concerns it; what is no announcement is ignored."""
        for message in batch:
            try:
                session, sequences = _decode(message.payload)
            except (msgspec.DecodeError, RecursionError):
                continue
            for listener in self._listeners:
                highest = sequences.get(listener.topic)
                if highest is not None:
                    listener.sink.announced(session, highest)

    def fail(self, error: BusError) -> None:
        """The broker permits it no longer, or the connection is given up."""
        self._on_refused(error)

    def announce_gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """A missed announcement is made up for by the next one."""

    def announced(self, session: int, highest: int) -> None:
        """Announcements are not announced."""

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Nothing is queued."""

    def put_back(self, message: Message) -> None:
        """Nothing is queued."""

    def drop(self, message: Message, cause: str) -> None:
        """Nothing is queued."""

    def skip(self, count: int) -> None:
        """There is no log."""

    def shed(self) -> None:
        """Nothing is queued."""
