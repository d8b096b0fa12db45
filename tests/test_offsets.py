"""What may be committed: against a model that looks at every offset each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from msight_bus.offsets import PartitionLedger


class Model:
    """Every record with whether it is done."""

    def __init__(self, start: int) -> None:
        self.expected = start
        self.done: dict[int, bool] = {}

    def deliver(self, offset: int) -> bool:
        new = offset >= self.expected
        if new:
            self.done[offset] = False
            self.expected = offset + 1
        return new

    def settle(self, offset: int) -> None:
        if offset in self.done:
            self.done[offset] = True

    @property
    def finished(self) -> int:
        return min((offset for offset, done in self.done.items() if not done), default=self.expected)

    @property
    def in_flight(self) -> int:
        return list(self.done.values()).count(False)


STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "read again", "read many", "settle", "skip"]), st.integers(0, 30)), max_size=40
)


@given(st.integers(0, 5), STEPS)
def test_what_is_finished_is_the_longest_finished_prefix(start, steps):
    """Offsets with holes, records read twice, settled in any order, twice, or never read."""
    ledger, model = PartitionLedger(start), Model(start)
    committed = start
    for step, n in steps:
        if step == "settle":
            ledger.settle(n)
            model.settle(n)
        elif step == "skip":  # retention has deleted what comes next
            ledger.expected = model.expected = model.expected + n
        elif step == "read many":
            first = model.expected + n % 4 - 1  # one in four was read before
            offsets = list(range(first, first + n // 2, 1 + n % 2))
            new = not offsets or first >= model.expected
            assert ledger.deliver_all(offsets) == new
            for offset in offsets if new else []:
                model.deliver(offset)
        else:
            offset = model.expected + n // 10 if step == "read" else n
            assert ledger.deliver(offset) == model.deliver(offset)
        assert (ledger.expected, ledger.finished, ledger.in_flight) == (
            model.expected,
            model.finished,
            model.in_flight,
        )
        assert ledger.finished >= committed  # never backwards
        committed = ledger.finished


@given(st.permutations(range(12)))
def test_settled_in_any_order_all_is_finished_at_the_end(order):
    ledger = PartitionLedger(100)
    assert all(ledger.deliver(100 + 3 * n) for n in range(12))
    for i, n in enumerate(order):
        open_offsets = [100 + 3 * m for m in order[i:]]
        assert (ledger.finished, ledger.in_flight) == (min(open_offsets), len(open_offsets))
        ledger.settle(100 + 3 * n)
    assert (ledger.finished, ledger.in_flight) == (134, 0)


def test_a_record_that_was_delivered_before_is_not_new():
    ledger = PartitionLedger(5)
    assert [ledger.deliver(offset) for offset in (4, 5, 5, 8, 6, 9)] == [False, True, False, True, False, True]
    assert ledger.in_flight == 3


def test_settling_what_was_never_delivered_does_nothing():
    ledger = PartitionLedger(0)
    for offset in (0, 4, 8):
        ledger.deliver(offset)
    for offset in (2, 4, 4, 6, 9, 100):  # between, twice, beyond
        ledger.settle(offset)
    assert (ledger.finished, ledger.in_flight) == (0, 2)
    ledger.settle(0)
    assert (ledger.finished, ledger.in_flight) == (8, 1)


def test_nothing_is_committed_by_a_new_ledger():
    ledger = PartitionLedger(7)
    assert (ledger.committed, ledger.finished, ledger.expected, ledger.in_flight) == (None, 7, 7, 0)


def test_a_batch_is_delivered_whole_or_not_at_all():
    one, other = PartitionLedger(5), PartitionLedger(5)
    assert one.deliver_all([5, 6, 9])
    assert all(other.deliver(offset) for offset in (5, 6, 9))
    assert not one.deliver_all([9, 10])
    assert one.deliver_all([])
    for ledger in (one, other):
        ledger.settle(5)
        assert (ledger.finished, ledger.expected, ledger.in_flight) == (6, 10, 2)
