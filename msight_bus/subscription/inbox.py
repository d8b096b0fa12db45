"""The receiving side of a subscription, which its backend calls: one queue, and one stream for each topic."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from heapq import heapify, heappop
from time import monotonic
from typing import Any

from msight_bus.backends.base import Selection
from msight_bus.errors import BusError
from msight_bus.events import BusEvent, DeadlineMissed, Gap
from msight_bus.message import Message
from msight_bus.subscription.message_queue import MessageQueue
from msight_bus.subscription.sequence_tracker import SequenceTracker

logger = logging.getLogger("msight_bus")

_EVICTION_EVENT_INTERVAL = 1.0
"""Minimum seconds between two events about evicted topics."""


class EvictedGaps:
    """Sums of the gaps, missing messages and duplicates of evicted topics, including those reported after the eviction."""

    __slots__ = ("duplicates", "gaps", "missing")

    def __init__(self) -> None:
        self.gaps = 0
        self.missing = 0
        self.duplicates = 0

    def add(self, stream: TopicStream) -> None:
        """Add the counters of a topic."""
        self.gaps += stream.gaps
        self.missing += stream.total_missing
        self.duplicates += stream.duplicates or 0


class Deadline:
    """A timer that reports `DeadlineMissed` when no message arrives within the deadline, once until the next message.

    Time in which the queue is full, so that the stream is paused, does not count.
    """

    def __init__(self, name: str, seconds: float, queue: MessageQueue, report: Callable[[BusEvent], None]) -> None:
        self._name = name
        self._seconds = seconds
        self._queue = queue
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._missed = False
        self._stopped = False

    def start(self) -> None:
        """Arm the deadline, if no message has armed it."""
        if self._timer is None:
            self._heard_at = asyncio.get_running_loop().time()
            self._watch_for(self._seconds)

    def heard(self) -> None:
        """Note that messages arrived, and arm the deadline."""
        if not self._stopped:
            self._heard_at = asyncio.get_running_loop().time()
            if self._timer is None:
                if self._missed:
                    logger.info("Messages arrive again on %s.", self._name)
                self._watch_for(self._seconds)

    def stop(self) -> None:
        """Disarm the deadline for good."""
        self._stopped = True
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
        self._missed = True
        logger.warning("Deadline missed: no message on %s for %g s.", self._name, self._seconds)
        self._report(DeadlineMissed(self._name, self._seconds))


class TopicStream:
    """One topic of one subscription (backends.base.TopicStream).

    Attributes:
        topic: the topic's name.
        tracker: tracks the publishers' sequences; ``None`` on a log, where offsets reveal gaps, and for a member of a group,
            which receives a part of the stream only.
        received: number of messages delivered to the queue.
        measured: number of messages at the last measurement of the topic's rate.
        gaps: number of gaps reported.
        missing: number of messages that the backend reported as missing, in addition to those of the tracker.
        deadline: the topic's deadline; ``None`` if it has none.
        used: number of messages that the subscription had received when this topic was used last.
        evicted: whether the topic is evicted; its next message begins new counters.
    """

    __slots__ = (
        "_inbox",
        "_queue",
        "_report",
        "deadline",
        "evicted",
        "gaps",
        "measured",
        "missing",
        "received",
        "topic",
        "tracker",
        "used",
    )

    def __init__(self, topic: str, inbox: Inbox, report: Callable[[BusEvent], None]) -> None:
        self.topic = topic
        self._inbox = inbox
        self._queue = inbox.queue
        self._report = report
        self.deadline: Deadline | None = None
        self.begin()

    def begin(self) -> None:
        """Reset all counters."""
        self.tracker = self._inbox.make_tracker()
        self.received = 0
        self.measured = 0
        self.gaps = 0
        self.missing = 0
        self.used = 0
        self.evicted = False

    def deliver(self, batch: list[Message]) -> None:
        """Queue a list of at least one message, and report gaps in their sequences."""
        self.observe(batch)
        self._queue.put(batch)

    def observe(self, batch: list[Message]) -> None:
        """Account for a list of at least one message, which is queued next, and report gaps in their sequences."""
        if self.evicted:
            self._inbox.keep(self)
        if self.deadline is not None:
            self.deadline.heard()
        self.received += len(batch)
        self.used = self._queue.received
        if self.tracker is not None:
            for finding in self.tracker.observe(batch):
                self._announce(finding.missing, finding.cause)

    def follows(self, session: int, sequence: int, received_at: float) -> bool:
        """Account for a message if it is the next of its session.

        Returns:
            ``True`` if accounted for; ``False`` if the caller must call `observe`.
        """
        tracker = self.tracker
        if self.evicted or self.deadline is not None or tracker is None:
            return False
        if not tracker.follows(session, sequence, received_at):
            return False
        self.received += 1
        self.used = self._queue.received
        return True

    def announced(self, session: int, highest: int) -> None:
        """Account for a publisher's announcement that ``highest`` is its last sequence on this topic."""
        if self.tracker is not None:
            finding = self.tracker.announced(session, highest)
            if finding is not None:
                self._announce(finding.missing, finding.cause)

    def silence(self, within: float) -> float:
        """Return the longest silence, in seconds, of a publisher that never announced its last sequence; 0.0 if there is none.

        Only publishers heard in the last ``within`` seconds count.
        """
        return 0.0 if self.tracker is None else self.tracker.silence(within)

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Report ``missing`` messages as missing; ``None``: an unknown number; ``at_most``: the number is an upper bound."""
        if not self.evicted:
            self.missing += missing or 0
        self._announce(missing, cause, at_most=at_most)

    @property
    def total_missing(self) -> int:
        """Number of messages known to be missing."""
        return self.missing + (0 if self.tracker is None else self.tracker.missing)

    @property
    def duplicates(self) -> int | None:
        """Number of messages received more than once; ``None`` where duplicates are not detected."""
        return None if self.tracker is None else self.tracker.duplicates

    def _announce(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        if self.evicted:
            self._inbox.evicted_gaps.gaps += 1
            self._inbox.evicted_gaps.missing += missing or 0
        else:
            self.gaps += 1
        self._report(Gap(self.topic, missing, cause, at_most=at_most))


class Inbox:
    """The receiving side of one subscription (backends.base.Inbox).

    Attributes:
        queue: messages that wait for the consumer.
        put: queues messages of any topics, for which their streams have accounted.
        unacknowledged: messages of a log that were returned to the consumer and are not acknowledged.
        counts: whether the sequences of publishers are tracked.
        deadlines_missed: number of deadlines missed.
        evicted: number of topics that were evicted, because more than ``most`` were received.
        evicted_gaps: gaps of those topics, and messages missing and duplicated there.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        counts: bool,
        deadline: float | None,
        most: int,
        clock: Callable[[], float],
        report: Callable[[BusEvent], None],
        on_full: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        """
        Args:
            selection: the topics and the queue policy.
            counts: whether the sequences of publishers are tracked.
            deadline: seconds without a message of a topic after which `DeadlineMissed` is reported; ``None``: never.
            most: maximum number of topics whose counters are kept.
            clock: returns POSIX seconds.
            report: called with each event.
            on_full: called when a queue with the ``block`` policy is full.
            on_room: called when that queue has room again.
        """
        self.queue = MessageQueue(selection.queue, many=selection.many, on_full=on_full, on_room=on_room)
        self.put = self.queue.put
        self.unacknowledged: list[Message[Any]] = []
        self.deadlines_missed = 0
        self.evicted = 0
        self.evicted_gaps = EvictedGaps()
        self._topic_map = selection.topic_map
        self._deadline = deadline
        self._most = most
        self.counts = counts
        self._clock = clock
        self._report = report
        self._streams: dict[str, TopicStream] = {}
        # Of the topics given by name: a silent topic is the first that is evicted.
        named = [] if deadline is None else [(self.topic_of(name), deadline) for name in selection.topics]
        self._deadlines = {topic: self._new_deadline(topic, seconds) for topic, seconds in named}
        self._least_used: list[tuple[int, str]] = []  # a heap
        self._eviction_told_at = -math.inf

    def make_tracker(self) -> SequenceTracker | None:
        """Return a tracker for one topic, ``None`` where sequences are not tracked."""
        return SequenceTracker(clock=self._clock) if self.counts else None

    def topic_of(self, name: str) -> str:
        """Return the topic whose name on the broker is ``name``."""
        return self._topic_map.topic_of(name)

    def stream(self, name: str) -> TopicStream:
        """Return the stream of the topic whose name on the broker is ``name``; valid until the subscription is closed."""
        topic = self.topic_of(name)
        stream = self._streams.get(topic)
        if stream is None:
            stream = TopicStream(topic, self, self._report)
            self.keep(stream)
        return stream

    def known(self, topic: str) -> TopicStream | None:
        """Return the stream of a topic; ``None`` if its counters are not kept."""
        return self._streams.get(topic)

    def keep(self, stream: TopicStream) -> None:
        """Keep the counters of a topic; evict the least recently used topic if there are too many."""
        if stream.evicted:
            stream.begin()
        self.queue.dropped_of.pop(stream.topic, None)  # drops of messages that were queued at the eviction
        if len(self._streams) >= self._most:
            self._evict()
        stream.used = self.queue.received
        self._streams[stream.topic] = stream
        if stream.topic in self._deadlines:
            stream.deadline = self._deadlines[stream.topic]
        elif self._deadline is not None:
            stream.deadline = self._new_deadline(stream.topic, self._deadline)

    def _new_deadline(self, topic: str, seconds: float) -> Deadline:
        return Deadline(topic, seconds, self.queue, self._deadline_missed)

    def _evict(self) -> None:
        streams, heap = self._streams, self._least_used
        while True:
            if not heap:
                heap.extend((stream.used, topic) for topic, stream in streams.items())
                heapify(heap)
            used, topic = heappop(heap)
            stream = streams.get(topic)
            if stream is not None and stream.used == used:  # else it was used after all that are left in the heap
                break
        del streams[topic]
        stream.evicted = True
        if stream.deadline is not None and topic not in self._deadlines:
            stream.deadline.stop()
        self.evicted += 1
        self.evicted_gaps.add(stream)
        dropped_of = self.queue.dropped_of
        dropped_of.pop(topic, None)
        if len(dropped_of) > 2 * self._most:  # messages of evicted topics were dropped later
            for name in [name for name in dropped_of if name not in streams]:
                del dropped_of[name]
        now = monotonic()
        if now - self._eviction_told_at >= _EVICTION_EVENT_INTERVAL:
            self._eviction_told_at = now
            self._report(Gap(topic, None, "evicted"))

    def start_watching(self) -> None:
        """Arm the deadlines of the topics that are given by name; the first message on a topic arms any other."""
        for deadline in self._deadlines.values():
            deadline.start()

    def _all_deadlines(self) -> set[Deadline]:
        known = {stream.deadline for stream in self._streams.values() if stream.deadline is not None}
        return known | set(self._deadlines.values())

    def _deadline_missed(self, event: BusEvent) -> None:
        self.deadlines_missed += 1
        self._report(event)

    @property
    def streams(self) -> Sequence[TopicStream]:
        """The streams whose counters are kept."""
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
        """Remove queued messages that another member receives.

        Args:
            unwanted: returns whether to remove a message.
            cause: the key in `SubscriptionStats.dropped` under which they are counted.
        """
        self.queue.discard(unwanted, cause)
        self.unacknowledged = [message for message in self.unacknowledged if not unwanted(message)]

    def requeue(self, message: Message) -> None:
        """Queue a message again, in front of all others."""
        self.unacknowledged = [held for held in self.unacknowledged if held is not message]
        self.queue.requeue(message)

    def drop(self, message: Message, cause: str) -> None:
        """Count a message that was returned to the consumer as dropped, and acknowledge it."""
        self.unacknowledged = [held for held in self.unacknowledged if held is not message]
        self.queue.drop((message,), cause)

    def skip(self, name: str, count: int) -> None:
        """Count up to ``count`` records of a topic, by its name on the broker, that are skipped to continue near the end."""
        stream = self.stream(name)
        stream.received += count
        self.queue.skip(stream.topic, count)

    def invalid(self, count: int) -> None:
        """Count messages that a pattern matches and whose channel is not a valid topic."""
        self.queue.reject(count, "invalid topic")

    def shed(self) -> None:
        """Drop the newest messages over the bound: the backend cannot pause the stream any longer."""
        self.queue.shed()

    def fail(self, error: BusError) -> None:
        """End the stream with ``error``, which the consumer gets after the queued messages."""
        self.stop_watching()
        self.queue.fail(error)

    def stop_watching(self) -> None:
        """Disarm the deadlines for good."""
        self._deadline = None
        for deadline in self._all_deadlines():
            deadline.stop()
