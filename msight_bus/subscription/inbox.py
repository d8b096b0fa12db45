"""The receiving side of a subscription, which its backend calls: one queue, and one stream for each topic."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from msight_bus.backends.base import Selection
from msight_bus.errors import BusError
from msight_bus.events import BusEvent, DeadlineMissed, Gap
from msight_bus.message import Message
from msight_bus.subscription.message_queue import MessageQueue
from msight_bus.subscription.sequence_tracker import SequenceTracker

logger = logging.getLogger("msight_bus")


class Deadline:
    """A timer that reports `DeadlineMissed` when no message arrives for some seconds, once until the next message.

    Time in which the queue is full, so that the stream is paused, does not count.

    Attributes:
        missed: number of deadlines missed.
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
        """Arm the deadline."""
        self._watching = True
        self._heard_at = asyncio.get_running_loop().time()
        self._watch_for(self._seconds)

    def heard(self) -> None:
        """Note that messages arrived, and arm the deadline again."""
        if self._watching:
            self._heard_at = asyncio.get_running_loop().time()
            if self._timer is None:
                logger.info("Messages arrive again on %s.", self._name)
                self._watch_for(self._seconds)

    def stop(self) -> None:
        """Disarm the deadline."""
        self._watching = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_for(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if self._queue.full:  # the consumer pauses the stream: the publishers are not silent
            self._heard_at = now
        left = self._heard_at + self._seconds - now
        if left > 0:
            self._watch_for(left)
            return
        self.missed += 1
        logger.warning("Deadline missed: no message on %s for %g s.", self._name, self._seconds)
        self._report(DeadlineMissed(self._name, self._seconds))


class TopicStream:
    """One topic of one subscription (backends.base.TopicStream).

    Attributes:
        topic: the topic's name.
        tracker: tracks the publishers' sequences; ``None`` on a log, where offsets reveal gaps, and for a member of a group,
            which receives a part of the stream only.
        gaps: number of gaps reported.
        missing: messages that the backend reported as missing, besides those of the tracker.
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
        """Queue a list of at least one message, and report gaps in their sequences."""
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
        """Account for a publisher's announcement that ``highest`` is its last sequence on this topic."""
        if self.tracker is not None:
            finding = self.tracker.announced(session, highest)
            if finding is not None:
                self._announce(finding.missing, finding.cause)

    def silence(self, within: float) -> float:
        """Return the longest silence, in seconds, of a publisher that never announced its last sequence; 0.0 without one.

        Only publishers heard in the last ``within`` seconds count.
        """
        return 0.0 if self.tracker is None else self.tracker.silence(within)

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Report ``missing`` messages as missing; ``None``: an unknown number; ``at_most``: the number is an upper bound."""
        self.missing += missing or 0
        self._announce(missing, cause, at_most=at_most)

    def _announce(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        self.gaps += 1
        self._report(Gap(self.topic, missing, cause, at_most=at_most))


class Inbox:
    """The receiving side of one subscription (backends.base.Inbox).

    Attributes:
        queue: messages that wait for the consumer.
        unacknowledged: messages of a log that were returned to the consumer and are not marked as done.
        deadline: the subscription's deadline, ``None`` without one.
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
        """
        Args:
            selection: the topics and the queue policy.
            counts: whether the sequences of publishers are tracked.
            deadline: seconds, or ``None``.
            clock: returns POSIX seconds.
            report: called with each event.
            on_full: called when a queue with the ``block`` policy is full.
            on_room: called when that queue has room again.
        """
        self.queue = MessageQueue(selection.queue, on_full=on_full, on_room=on_room)
        self.unacknowledged: list[Message[Any]] = []
        self.deadline = None if deadline is None else Deadline(selection.name, deadline, self.queue, report)
        self._counts = counts
        self._clock = clock
        self._report = report
        self._streams: dict[str, TopicStream] = {}

    def stream(self, topic: str) -> TopicStream:
        """Return the stream of a topic; made at the first call."""
        stream = self._streams.get(topic)
        if stream is None:
            tracker = SequenceTracker(clock=self._clock) if self._counts else None
            stream = self._streams[topic] = TopicStream(topic, self.queue, tracker, self.deadline, self._report)
        return stream

    @property
    def streams(self) -> Sequence[TopicStream]:
        """The streams made so far."""
        return tuple(self._streams.values())

    @property
    def room(self) -> int:
        """Number of messages that still fit into the queue."""
        return self.queue.room

    def gap(self, missing: int | None, cause: str) -> None:
        """Report a gap on every topic."""
        for stream in self.streams:
            stream.gap(missing, cause)

    def discard(self, unwanted: Callable[[Message], bool], cause: str) -> None:
        """Remove queued messages that are delivered to another member; ``cause`` is counted in ``dropped``."""
        self.queue.discard(unwanted, cause)
        self.unacknowledged = [message for message in self.unacknowledged if not unwanted(message)]

    def put_back(self, message: Message) -> None:
        """Queue a message again, in front of all others."""
        self.unacknowledged = [held for held in self.unacknowledged if held is not message]
        self.queue.put_back(message)

    def drop(self, message: Message, cause: str) -> None:
        """Count a message that was returned to the consumer as dropped, and mark it as done."""
        self.unacknowledged = [held for held in self.unacknowledged if held is not message]
        self.queue.drop((message,), cause)

    def skip(self, count: int) -> None:
        """Count at most ``count`` records of a log that are skipped for the latest ones."""
        self.queue.skip(count)

    def shed(self) -> None:
        """Drop the newest messages over the bound: the backend cannot pause the stream any longer."""
        self.queue.shed()

    def fail(self, error: BusError) -> None:
        """End the stream with ``error``, which the consumer gets after the queued messages."""
        self.stop_watching()
        self.queue.fail(error)

    def stop_watching(self) -> None:
        """Disarm the deadline, if there is one."""
        if self.deadline is not None:
            self.deadline.stop()
