"""What may be committed: against a model that looks at every offset each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from msight_bus.offset_tracker import PartitionLedger


class Model:
    """Every record with whether it is done."""

    def __init__(self, start: int) -> None:
        self.expected = start
        self.done: dict[int, bool] = {}

    def deliver(self, first: int, end: int) -> None:
        self.done.update(dict.fromkeys(range(first, end), False))
        self.expected = end

    def settle(self, offset: int) -> None:
        if offset in self.done:
            self.done[offset] = True

    @property
    def finished(self) -> int:
        return min((offset for offset, done in self.done.items() if not done), default=self.expected)


STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "read many", "settle", "settle", "skip"]), st.integers(0, 30)), max_size=60
)


@given(st.integers(0, 5), STEPS)
def test_what_is_finished_is_the_longest_finished_prefix(start, steps):
    """Offsets with holes, settled in any order, twice, or never read."""
    ledger, model = PartitionLedger(start), Model(start)
    committed = start
    for step, n in steps:
        if step == "settle":
            ledger.settle(n)
            model.settle(n)
        elif step == "skip":  # retention has deleted what comes next
            ledger.expected = model.expected = model.expected + n
        else:  # right behind what was read, or behind a hole
            first = model.expected + n % 3
            end = first + 1 + (n // 3 if step == "read many" else 0)
            ledger.deliver(first, end)
            model.deliver(first, end)
        assert (ledger.expected, ledger.finished) == (model.expected, model.finished)
        assert ledger.finished >= committed  # never backwards
        committed = ledger.finished


@given(st.permutations(range(12)))
def test_settled_in_any_order_all_is_finished_at_the_end(order):
    ledger = PartitionLedger(100)
    for n in range(12):
        ledger.deliver(100 + 3 * n, 101 + 3 * n)
    for i, n in enumerate(order):
        assert ledger.finished == min(100 + 3 * m for m in order[i:])
        ledger.settle(100 + 3 * n)
    assert ledger.finished == ledger.expected == 134


def test_settling_what_was_never_delivered_does_nothing():
    ledger = PartitionLedger(0)
    for offset in (0, 4, 8):
        ledger.deliver(offset, offset + 1)
    for offset in (2, 4, 4, 6, 9, 100):  # between, twice, beyond
        ledger.settle(offset)
    assert ledger.finished == 0
    ledger.settle(0)
    assert ledger.finished == 8
    ledger.deliver(9, 10)
    ledger.settle(8)
    assert ledger.finished == 9  # which was settled before it was delivered


def test_nothing_is_committed_by_a_new_ledger():
    ledger = PartitionLedger(7)
    assert (ledger.committed, ledger.finished, ledger.expected) == (None, 7, 7)


def test_what_is_skipped_is_finished_with_the_first_record_behind_it():
    ledger = PartitionLedger(5)
    ledger.deliver(5, 7)
    ledger.settle(5)
    ledger.skip_to(20)
    assert (ledger.expected, ledger.finished) == (20, 6)
    ledger.settle(6)
    assert ledger.finished == 6
    ledger.deliver(20, 22)
    assert ledger.finished == 6
    ledger.settle(20)
    assert ledger.finished == 21
    ledger.settle(21)
    assert ledger.finished == 22
