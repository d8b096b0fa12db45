"""Account for every published message. Pure: uses neither a bus nor a broker.

Publishers number their messages from 1. A ledger stores runs and holes instead of messages, so its memory does not grow with the
duration of a soak.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field, fields

SLACK = 0.5
"""Seconds within which a gap of unknown size is announced after the first messages of a new connection."""

TAIL_WITHIN = 30.0
"""Seconds within which the loss of a stream's last messages must be announced; a dead connection is detected within 15."""


@dataclass(frozen=True)
class Account:
    """The account of one subscription, in messages.

    Attributes:
        acknowledged: acknowledged to the publisher.
        unknown: publish failed, with an unknown outcome.
        delivered: delivered to the consumer, without duplicates.
        announced: lost, and reported with their number.
        unsized: lost, and reported as a gap of unknown size.
        dropped: dropped and counted by the subscription's queue.
        silent: lost, and not reported.
        overstated: reported as lost, but not lost.
        duplicated: delivered again.
        reordered: delivered after a later message of their stream.
        damaged: delivered with another payload.
        below_committed: delivered again after their commit.
    """

    acknowledged: int = 0
    unknown: int = 0
    delivered: int = 0
    announced: int = 0
    unsized: int = 0
    dropped: int = 0
    silent: int = 0
    overstated: int = 0
    duplicated: int = 0
    reordered: int = 0
    damaged: int = 0
    below_committed: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in asdict(self).items() if count)


@dataclass
class _Hole:
    """Missing numbers ``first`` to ``end - 1``, between deliveries at ``since`` and ``until``."""

    first: int
    end: int
    since: float
    until: float


@dataclass
class _Stream:
    """One session of one publisher."""

    began: float
    acknowledged: int = 0
    last: int = 0
    last_at: float = -math.inf
    unknown: set[int] = field(default_factory=set)
    delivered: int = 0
    highest: int = 0
    delivered_at: float = -math.inf
    holes: list[_Hole] = field(default_factory=list)


class Ledger:
    """The messages of one topic for one subscription or one group. Times are in seconds of one clock.

    Attributes:
        commits: known committed offsets of the group by partition.
        damaged: messages that were delivered with another payload.
    """

    def __init__(self) -> None:
        self._streams: dict[Hashable, _Stream] = {}
        self._announced: list[tuple[float, int | None]] = []
        self.commits: dict[int, int] = {}
        self._floors: dict[tuple[Hashable, int], int] = {}
        self._duplicated = 0
        self._reordered = 0
        self._below_committed = 0
        self.damaged = 0

    def _stream(self, stream: Hashable, at: float) -> _Stream:
        return self._streams.setdefault(stream, _Stream(at))

    # -- the publisher's side

    def acknowledged(self, stream: Hashable, number: int, at: float) -> None:
        """Record that message ``number`` was acknowledged to the publisher."""
        kept = self._stream(stream, at)
        kept.acknowledged += 1
        kept.last, kept.last_at = max(kept.last, number), at

    def acknowledged_to(self, stream: Hashable, number: int, at: float) -> None:
        """Record that all messages up to ``number`` were acknowledged."""
        kept = self._stream(stream, at)
        kept.acknowledged += max(0, number - kept.last)
        kept.last, kept.last_at = max(kept.last, number), at

    def unknown(self, stream: Hashable, number: int, at: float) -> None:
        """Record that the publish of ``number`` failed with an unknown outcome."""
        self._stream(stream, at).unknown.add(number)

    # -- the subscriber's side

    def delivered(self, stream: Hashable, number: int, at: float) -> None:
        """Record that message ``number`` was received at ``at``."""
        kept = self._stream(stream, at)
        if number > kept.highest:
            if number > kept.highest + 1:
                since = kept.delivered_at if kept.highest else kept.began
                kept.holes.append(_Hole(kept.highest + 1, number, since, at))
            kept.highest, kept.delivered_at = number, at
        elif (hole := next((h for h in kept.holes if h.first <= number < h.end), None)) is not None:
            self._reordered += 1
            parts = (
                _Hole(hole.first, number, hole.since, hole.until),
                _Hole(number + 1, hole.end, hole.since, hole.until),
            )
            where = kept.holes.index(hole)
            kept.holes[where : where + 1] = [part for part in parts if part.first < part.end]
        else:
            self._duplicated += 1
            return
        kept.delivered += 1

    def highest(self, stream: Hashable) -> int:
        """Return the last received message of a stream, or 0."""
        return self._streams[stream].highest if stream in self._streams else 0

    def announced(self, missing: int | None, at: float) -> None:
        """Record a gap that was reported at ``at``; ``None``: of unknown size."""
        self._announced.append((at, missing))

    def committed(self, partition: int, offset: int) -> None:
        """Record a committed offset of the group."""
        self.commits[partition] = max(offset, self.commits.get(partition, 0))

    def fetched(self, assignment: Hashable, partition: int, offset: int) -> None:
        """Record a delivery by an assignment, which must not start below an earlier commit."""
        floor = self._floors.setdefault((assignment, partition), self.commits.get(partition, 0))
        self._below_committed += offset < floor

    # -- the account

    def account(self, *, dropped: int = 0) -> Account:
        """Compare missing messages with reported gaps, hole by hole.

        A hole is reported by gaps between the deliveries before and after the hole. ``dropped`` messages are counted by the
        subscription's queue, without their numbers.
        """
        announced = sorted(self._announced, key=lambda each: each[0])
        times = [at for at, _ in announced]
        left_over = [missing for _, missing in announced]
        by_size = without_size = unexplained = 0
        for hole, lost in self._lost():
            left = lost
            unsized = False
            for i in range(bisect_left(times, hole.since), bisect_right(times, hole.until + SLACK)):
                said = left_over[i]
                if said is None:
                    unsized = True
                else:
                    used = min(said, left)
                    left_over[i] = said - used
                    left -= used
                    by_size += used
            if unsized:
                without_size += left
            else:
                unexplained += left
        return Account(
            acknowledged=sum(stream.acknowledged for stream in self._streams.values()),
            unknown=sum(len(stream.unknown) for stream in self._streams.values()),
            delivered=sum(stream.delivered for stream in self._streams.values()),
            announced=by_size,
            unsized=without_size,
            dropped=dropped,
            silent=max(0, unexplained - dropped),
            overstated=sum(said or 0 for said in left_over) + max(0, dropped - unexplained),
            duplicated=self._duplicated,
            reordered=self._reordered,
            damaged=self.damaged,
            below_committed=self._below_committed,
        )

    def _lost(self) -> list[tuple[_Hole, int]]:
        """Return every hole with its missing messages, by the time until which it must be reported."""
        found = []
        for stream in self._streams.values():
            since = stream.delivered_at if stream.highest else stream.began
            tail = _Hole(stream.highest + 1, stream.last + 1, since, stream.last_at + TAIL_WITHIN)
            for hole in [*stream.holes, tail]:
                lost = max(0, hole.end - hole.first) - sum(hole.first <= n < hole.end for n in stream.unknown)
                if lost > 0:
                    found.append((hole, lost))
        return sorted(found, key=lambda each: each[0].until)
