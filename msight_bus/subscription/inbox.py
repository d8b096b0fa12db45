"""The receiving half of a subscription: one queue, and a stream for each of its topics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from msight_bus.backends.base import Selection
from msight_bus.errors import BusError
from msight_bus.events import BusEvent, DeadlineMissed, Gap
from msight_bus.message import Message
from msight_bus.subscription.queue import MessageQueue
from msight_bus.subscription.sequence_tracker import SequenceTracker

logger = logging.getLogger("msight_bus")


class Deadline:
    """Tells when nothing has come for some seconds, once until something comes again: one timer.

    Time in which a full queue holds the stream up does not count.

    Attributes:
        missed: how often.
    """

    def __init__(self, name: str, seconds: float, queue: MessageQueue, report: Callable[[BusEvent], None]) -> None:
        self._name = name
        self._seconds = seconds
        self._queue = queue
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._watching = False
        self.missed = 0

    def start(self) -> None:
        """Watch from now on."""
        self._watching = True
        self._heard_at = asyncio.get_running_loop().time()
        self._watch_for(self._seconds)

    def heard(self) -> None:
        """Messages have come."""
        if self._watching:
            self._heard_at = asyncio.get_running_loop().time()
            if self._timer is None:
                logger.info("Messages come again on %s.", self._name)
                self._watch_for(self._seconds)

    def stop(self) -> None:
        """Nothing more is expected."""
        self._watching = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_for(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if self._queue.full:  # the consumer holds the stream up, so it is not the stream that is quiet
            self._heard_at = now
        left = self._heard_at + self._seconds - now
        if left > 0:
            self._watch_for(left)
            return
        self.missed += 1
        logger.warning("No message has come on %s for %g s.", self._name, self._seconds)
        self._report(DeadlineMissed(self._name, self._seconds))


class TopicStream:
    """One topic of one subscription (backends.base.TopicStream).

    Attributes:
        topic: its name.
        tracker: follows the publishers' sequences; ``None`` where a log finds gaps by its offsets, and for members of a
            group, of whom each sees a part of the stream.
        gaps: how often messages were found missing, or a cut was announced.
        missing: messages found missing by other means than the tracker's.
    """

    __slots__ = ("_deadline", "_queue", "_report", "gaps", "missing", "topic", "tracker")

    def __init__(
        self,
        topic: str,
        queue: MessageQueue,
        tracker: SequenceTracker | None,
        deadline: Deadline | None,
        report: Callable[[BusEvent], None],
    ) -> None:
        self.topic = topic
        self.tracker = tracker
        self.gaps = 0
        self.missing = 0
        self._queue = queue
        self._deadline = deadline
        self._report = report

    def deliver(self, batch: list[Message]) -> None:
        """Queue messages, at least one."""
        if self._deadline is not None:
            self._deadline.heard()
        if self.tracker is None:
            self._queue.put(batch)
            return
        found = self.tracker.observe(batch)
        self._queue.put(batch)
        if found:
            for finding in found:
                self._announce(finding.missing, finding.cause)

    def announced(self, session: int, highest: int) -> None:
        """A publisher says that ``highest`` was its last sequence on this topic."""
        if self.tracker is not None:
            finding = self.tracker.announced(session, highest)
            if finding is not None:
                self._announce(finding.missing, finding.cause)

    def silence(self) -> float:
        """Seconds for which a publisher that never announced its last sequence has been silent; 0.0 if there is none."""
        return 0.0 if self.tracker is None else self.tracker.silence()

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Messages are missing, ``missing`` or at most so many; ``None`` if how many cannot be known."""
        self.missing += missing or 0
        self._announce(missing, cause, at_most=at_most)

    def _announce(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        self.gaps += 1
        self._report(Gap(self.topic, missing, cause, at_most=at_most))


class Inbox:
    """Where a backend delivers what one subscription receives (backends.base.Inbox).

    Attributes:
        queue: what waits for the consumer.
        in_hand: messages of a log that the consumer has and has not finished.
        deadline: watches for silence, where the subscription asked for that.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        counts: bool,
        deadline: float | None,
        clock: Callable[[], float],
        report: Callable[[BusEvent], None],
        on_full: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        """``counts`` tells whether the sequences of publishers are followed; ``clock`` gives POSIX seconds."""
        self.queue = MessageQueue(selection.queue, on_full=on_full, on_room=on_room)
        self.in_hand: list[Message] = []
        self.deadline = None if deadline is None else Deadline(selection.name, deadline, self.queue, report)
        self._counts = counts
        self._clock = clock
        self._report = report
        self._streams: dict[str, TopicStream] = {}

    def stream(self, topic: str) -> TopicStream:
        """The stream of one of the topics."""
        stream = self._streams.get(topic)
        if stream is None:
            tracker = SequenceTracker(clock=self._clock) if self._counts else None
            stream = self._streams[topic] = TopicStream(topic, self.queue, tracker, self.deadline, self._report)
        return stream

    @property
    def streams(self) -> Sequence[TopicStream]:
        """The streams that there are."""
        return tuple(self._streams.values())

    @property
    def room(self) -> int:
        """Messages that the queue still takes."""
        return self.queue.room

    def gap(self, missing: int | None, cause: str) -> None:
        """Messages are missing on every topic."""
        for stream in self.streams:
            stream.gap(missing, cause)

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Take queued messages back: they are delivered elsewhere."""
        self.queue.discard(unwanted, cause)
        self.in_hand = [message for message in self.in_hand if not unwanted(message)]

    def put_back(self, message: Message) -> None:
        """Deliver a message again."""
        self.in_hand = [held for held in self.in_hand if held is not message]
        self.queue.put_back(message)

    def drop(self, message: Message, cause: str) -> None:
        """Count a delivered message as dropped, and settle it."""
        self.in_hand = [held for held in self.in_hand if held is not message]
        self.queue.drop((message,), cause)

    def skip(self, count: int) -> None:
        """So many messages of a log, at most, are passed over for fresh ones."""
        self.queue.skip(count)

    def shed(self) -> None:
        """The backend cannot wait for room any longer."""
        self.queue.shed()

    def fail(self, error: BusError) -> None:
        """Nothing more comes, because of ``error``."""
        self.stop_watching()
        self.queue.fail(error)

    def stop_watching(self) -> None:
        """Nothing more is expected."""
        if self.deadline is not None:
            self.deadline.stop()
