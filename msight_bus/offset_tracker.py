"""Track which records of a partition are acknowledged. Only the acknowledged prefix may be committed. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from operator import itemgetter

_start = itemgetter(0)
_NONE = -1


class PartitionLedger:
    """Deliveries and acknowledgements of one partition during one assignment.

    Offsets are consecutive except for a few holes, so delivered offsets are kept as runs: settling a record in order, the usual
    case, costs one comparison.

    Attributes:
        expected: the lowest possible offset of the next record; a record below this offset was delivered before.
        committed: the last committed offset; ``None`` before the first commit of this ledger.
    """

    __slots__ = ("_done", "_first", "_runs", "_skipped", "committed", "expected")

    def __init__(self, start: int) -> None:
        self.expected = start
        self._skipped: tuple[int, int] | None = None
        self.committed: int | None = None
        self._runs: deque[tuple[int, int]] = deque()  # delivered: from start to before end; the first is not done
        self._first = _NONE  # the first offset that is not done
        self._done: set[int] = set()  # offsets after _first that are done

    def deliver(self, first: int, end: int) -> None:
        """Record the delivery of the records from ``first`` to before ``end``, none below ``expected``.

        Offsets without a record (control records, compaction) count as acknowledged.
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
        """Acknowledge a record. Does nothing if the record is acknowledged already or was never delivered."""
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
        """Skip all records below ``offset``. ``offset`` can be committed once the first record from there on is acknowledged."""
        self._skipped = (self.finished, offset)
        self.expected = offset

    @property
    def finished(self) -> int:
        """The offset to commit, which on Kafka is the next offset to read: every record below this offset is acknowledged."""
        finished = self._first if self._runs else self.expected
        if self._skipped is not None and finished <= self._skipped[1]:
            return min(finished, self._skipped[0])
        return finished
