"""The ledger on streams with known holes, duplicates and swaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.ledger import SLACK, TAIL_WITHIN, Account, Ledger


def published(n, stream="s"):
    ledger = Ledger()
    for number in range(1, n + 1):
        ledger.acknowledged(stream, number, 0.0)
    return ledger


def deliver(ledger, numbers, stream="s", at=1.0):
    for step, number in enumerate(numbers):
        ledger.delivered(stream, number, at + step)


def test_a_whole_stream_has_nothing_to_report():
    ledger = published(5)
    deliver(ledger, [1, 2, 3, 4, 5])
    assert ledger.account() == Account(acknowledged=5, delivered=5)


def test_holes_duplicates_and_swaps_are_each_found():
    ledger = published(12)
    deliver(ledger, [3, 4, 4, 8, 7, 9, 3, 10])  # lost: 1, 2, 5, 6, 11, 12; copied: 4, 3; swapped: 7
    assert ledger.account() == Account(acknowledged=12, delivered=6, silent=6, duplicated=2, reordered=1)


def test_an_announced_hole_is_not_silent():
    ledger = published(10)
    deliver(ledger, [1, 2], at=1)
    ledger.announced(3, 5.0)
    deliver(ledger, [6, 7, 8, 9, 10], at=5)
    assert ledger.account() == Account(acknowledged=10, delivered=7, announced=3)


def test_a_hole_may_be_announced_in_parts():
    ledger = published(10)
    deliver(ledger, [1, 2], at=1)
    ledger.announced(2, 4.0)
    ledger.announced(1, 5.0)
    deliver(ledger, [6, 7, 8, 9, 10], at=5)
    assert ledger.account().announced == 3
    assert ledger.account().silent == 0


def test_a_gap_reported_too_small_is_silent_and_too_large_is_overstated():
    for said, silent, overstated in ((2, 1, 0), (3, 0, 0), (5, 0, 2)):
        ledger = published(10)
        deliver(ledger, [1, 2], at=1)
        ledger.announced(said, 5.0)
        deliver(ledger, [6, 7, 8, 9, 10], at=5)
        assert (ledger.account().silent, ledger.account().overstated) == (silent, overstated)


def test_an_announcement_covers_no_hole_of_another_time():
    for said in (3, None):
        ledger = published(10)
        ledger.announced(said, 0.5)
        deliver(ledger, [1, 2], at=1)
        deliver(ledger, [6, 7, 8, 9, 10], at=5)
        ledger.announced(said, 5 + SLACK + 0.1)
        assert ledger.account().silent == 3


def test_a_gap_of_unknown_size_covers_its_hole_and_is_counted_apart():
    ledger = published(10)
    deliver(ledger, [1, 2], at=1)
    ledger.announced(None, 4.0)
    deliver(ledger, [6, 7], at=5)
    assert ledger.account() == Account(acknowledged=10, delivered=4, unsized=3, silent=3)


def test_the_end_of_a_dead_publishers_stream_is_covered_by_a_later_gap():
    ledger = published(4, "first life")
    deliver(ledger, [1, 2], "first life")
    ledger.announced(None, 9.0)
    ledger.acknowledged("second life", 1, 10.0)
    deliver(ledger, [1], "second life", at=11)
    assert ledger.account() == Account(acknowledged=5, delivered=3, unsized=2)


def test_the_end_of_a_stream_is_not_covered_by_a_gap_of_long_after():
    for said in (2, None):
        ledger = published(4)
        deliver(ledger, [1, 2])
        ledger.announced(said, TAIL_WITHIN + SLACK + 1)
        assert ledger.account().silent == 2


def test_the_end_of_one_life_takes_no_announcement_that_the_next_needs():
    ledger = published(4, "first life")
    deliver(ledger, [1, 2], "first life")
    ledger.acknowledged_to("second life", 5, 10.0)
    deliver(ledger, [1], "second life", at=11)
    ledger.announced(3, 12.0)
    deliver(ledger, [5], "second life", at=12)
    ledger.announced(2, 14.0)  # only the first life's end can still be meant
    assert ledger.account() == Account(acknowledged=9, delivered=4, announced=5)


def test_a_publish_of_unknown_outcome_is_neither_lost_nor_a_copy():
    ledger = published(2)
    ledger.unknown("s", 3, 0.0)
    ledger.unknown("s", 4, 0.0)
    ledger.acknowledged("s", 5, 0.0)
    deliver(ledger, [1, 2, 4, 5])
    assert ledger.account() == Account(acknowledged=3, unknown=2, delivered=4)


def test_drops_that_the_queue_counted_are_not_silent():
    ledger = published(10)
    deliver(ledger, [1, 2, 6, 10])
    assert ledger.account(dropped=6) == Account(acknowledged=10, delivered=4, dropped=6)
    assert ledger.account(dropped=5).silent == 1
    assert ledger.account(dropped=7).overstated == 1


def test_a_delivery_of_a_record_committed_before_is_found():
    ledger = Ledger()
    ledger.fetched("a", 0, 0)
    ledger.committed(0, 7)
    ledger.fetched("a", 0, 5)  # its own commit came while it was at work
    ledger.fetched("b", 0, 7)
    ledger.fetched("c", 0, 6)
    ledger.fetched("c", 1, 0)
    assert ledger.account().below_committed == 1


@given(st.data())
def test_every_message_of_any_stream_is_accounted_for(data):
    n = data.draw(st.integers(1, 40))
    lost = data.draw(st.sets(st.integers(1, n)))
    arrived = [number for number in range(1, n + 1) if number not in lost]
    swapped = data.draw(st.permutations(arrived))
    copies = data.draw(st.lists(st.sampled_from(arrived), max_size=5)) if arrived else []
    ledger = published(n)
    deliver(ledger, [*swapped, *copies])
    account = ledger.account()
    behind = sum(any(later > number for later in swapped[:i]) for i, number in enumerate(swapped))
    assert account.silent == len(lost)
    assert account.delivered == len(arrived)
    assert account.duplicated == len(copies)
    assert account.reordered == behind
