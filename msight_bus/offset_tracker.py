"""Which records of a partition are done: the finished prefix is all that may be committed. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from operator import itemgetter

_start = itemgetter(0)
_NONE = -1


class PartitionLedger:
    """Deliveries and acknowledgements of one partition during one assignment.

    Offsets follow each other but for a few holes, so what was delivered is kept as runs: records that are settled in their
    order, as nearly all are, cost one comparison each.

    Attributes:
        expected: the offset that the next record has at least; one below it was delivered before.
        committed: the offset committed last, ``None`` if none was by this ledger.
    """

    __slots__ = ("_done", "_first", "_runs", "_skipped", "committed", "expected")

    def __init__(self, start: int) -> None:
        self.expected = start
        self._skipped: tuple[int, int] | None = None
        self.committed: int | None = None
        self._runs: deque[tuple[int, int]] = deque()  # delivered, from start to before end, the first one not all done
        self._first = _NONE  # the first offset that is not done
        self._done: set[int] = set()  # behind it

    def deliver(self, first: int, end: int) -> None:
        """The records from ``first`` to before ``end`` were read, all of them new (not below ``expected``).

        Offsets that are skipped (control records, compaction) are done.
        """
        runs = self._runs
        if not runs:
            self._first = first
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
        self.expected = end

    def settle(self, offset: int) -> None:
        """The record is done. Settling it again, or one that was never delivered, does nothing."""
        if offset == self._first:
            self._first = end = offset + 1
            if self._done or end == self._runs[0][1]:
                self._advance()
        elif offset > self._first and self._was_delivered(offset):
            self._done.add(offset)

    def _was_delivered(self, offset: int) -> bool:
        before = bisect_right(self._runs, offset, key=_start)
        return before > 0 and offset < self._runs[before - 1][1]

    def _advance(self) -> None:
        runs, done = self._runs, self._done
        while runs:
            start, end = runs[0]
            first = max(self._first, start)
            while first in done:
                done.discard(first)
                first += 1
            if first < end:
                self._first = first
                return
            runs.popleft()
        self._first = _NONE

    def skip_to(self, offset: int) -> None:
        """Pass over all records below ``offset``; that is finished with the first one behind it, not before."""
        self._skipped = (self.finished, offset)
        self.expected = offset

    @property
    def finished(self) -> int:
        """The offset to commit: every record before it is done (Kafka commits the next offset to read)."""
        finished = self._first if self._runs else self.expected
        if self._skipped is not None and finished <= self._skipped[1]:
            return min(finished, self._skipped[0])
        return finished
