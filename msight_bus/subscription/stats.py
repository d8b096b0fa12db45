"""Counters of a subscription."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TopicStats:
    """A snapshot of the counters of one topic of a subscription, in messages; see `SubscriptionStats`.

    Attributes:
        received: received from the broker.
        delivered: returned to the consumer.
        dropped: not returned to the consumer, by cause.
        gaps: number of gaps reported; ``None`` where gaps are not counted.
        missing: messages known to be missing; ``None`` where gaps are not counted.
        duplicates: messages received more than once; ``None`` where they are not detected.
    """

    received: int
    delivered: int
    dropped: Mapping[str, int]
    gaps: int | None
    missing: int | None
    duplicates: int | None


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """A snapshot of one subscription's counters, in messages.

    Attributes:
        received: received from the broker.
        delivered: returned to the consumer.
        dropped: not returned to the consumer, by cause: the name of a queue policy, ``"block_timeout"``, ``"revoked"``,
            ``"closed"``, ``"too old"`` (older than the lifespan), ``"no dead letter"``, ``"skipped"`` (records that were
            skipped to continue near the end of the log; an upper bound), ``"invalid topic"`` (a pattern matched an invalid name).
        gaps: number of gaps reported, those of a reconnect included; ``None`` where gaps are not counted.
        missing: messages known to be missing; ``None`` for a member of a group that shares a stream.
        duplicates: messages received more than once; ``None`` where they are not detected.
        queued: messages in the queue now.
        queued_peak: the maximum of ``queued`` so far.
        lag: records of a log between the last one returned to the consumer and the end of the log, queued ones included;
            ``None`` without a log, or while the end is not known.
        deadlines_missed: number of `DeadlineMissed` events.
        topics: the counters by topic, of at most ``MSIGHT_STATS_TOPICS`` topics. Those of an evicted topic restart at its
            next message; messages that were queued before are not in ``received``.
        evicted: number of topics whose counters were evicted, because more than ``MSIGHT_STATS_TOPICS`` were received.
    """

    received: int
    delivered: int
    dropped: Mapping[str, int]
    gaps: int | None
    missing: int | None
    duplicates: int | None
    queued: int
    queued_peak: int
    deadlines_missed: int = 0
    lag: int | None = None
    topics: Mapping[str, TopicStats] = field(default_factory=dict)
    evicted: int = 0
