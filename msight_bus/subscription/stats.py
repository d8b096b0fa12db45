"""Counters of a subscription."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """A snapshot of one subscription's counters, in messages.

    Attributes:
        received: delivered by the broker.
        delivered: handed to the consumer.
        dropped: not handed to the consumer, by cause: a queue policy's name, ``"block_timeout"``, ``"revoked"``, ``"closed"``,
            ``"too old"`` (its lifespan was over), ``"skipped"`` (passed over in a log for the latest ones; at most so many).
        gaps: how often messages were found missing, or a cut was announced; ``None`` where that is not counted.
        missing: messages known to be missing; ``None`` where counting is meaningless (a member of a group).
        duplicates: messages that came again; ``None`` where counting is meaningless.
        queued: waiting for the consumer now.
        queued_peak: the most that ever waited.
        lag: records of a log that the consumer has not been given: those behind the position, up to the end, and those queued;
            ``None`` where there is no log, or its end is not known yet.
        deadlines_missed: how often the stream went quiet for the subscription's deadline.
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
