"""Which records of a partition are done: the finished prefix is all that may be committed. Pure."""

from __future__ import annotations

from collections import deque


class PartitionLedger:
    """Deliveries and acknowledgements of one partition during one assignment.

    Attributes:
        expected: the offset that the next record has at least; one below it was delivered before.
        committed: the offset committed last, ``None`` if none was by this ledger.
    """

    __slots__ = ("_open", "_order", "committed", "expected")

    def __init__(self, start: int) -> None:
        self.expected = start
        self.committed: int | None = None
        self._open: set[int] = set()
        self._order: deque[int] = deque()  # from the first open offset on

    def deliver(self, offset: int) -> bool:
        """A record was read; returns whether it is new. Offsets that are skipped (control records, compaction) are done."""
        if offset < self.expected:
            return False
        self._open.add(offset)
        self._order.append(offset)
        self.expected = offset + 1
        return True

    def deliver_all(self, offsets: list[int]) -> bool:
        """Records were read, in ascending order; returns whether all are new. If not, nothing was noted: use `deliver`."""
        if offsets and offsets[0] < self.expected:
            return False
        if offsets:
            self._open.update(offsets)
            self._order.extend(offsets)
            self.expected = offsets[-1] + 1
        return True

    def settle(self, offset: int) -> None:
        """The record is done. Settling it again, or one that was never delivered, does nothing."""
        self._open.discard(offset)
        order = self._order
        while order and order[0] not in self._open:
            order.popleft()

    @property
    def finished(self) -> int:
        """The offset to commit: every record before it is done (Kafka commits the next offset to read)."""
        return self._order[0] if self._order else self.expected

    @property
    def in_flight(self) -> int:
        """Records delivered and not done."""
        return len(self._open)
