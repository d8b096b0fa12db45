"""What is missing and what came twice: against a model that remembers every sequence it saw."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.accounting import SequenceTracker, SubscriptionStats
from msight_bus.message import Message

TRACKED = 4096
"""Holes and sessions that are remembered: enough for any real outage, and a bound."""


def messages(*sequences: int | None, session: int = 1) -> list[Message]:
    return [Message("t", b"", session=session, sequence=sequence) for sequence in sequences]


def counters(tracker: SequenceTracker) -> tuple[int, int, int]:
    return tracker.gaps, tracker.missing, tracker.duplicates


class Model:
    """Each session's sequences, kept for ever."""

    def __init__(self) -> None:
        self.seen: dict[int, set[int]] = {}
        self.highest: dict[int, int] = {}
        self.gaps = self.duplicates = 0

    @property
    def missing(self) -> int:
        return sum(self.highest[s] - min(seen) + 1 - len(seen) for s, seen in self.seen.items())

    def observe(self, session: int, sequence: int | None) -> list[int]:
        if sequence is None:
            return []
        if session not in self.seen:
            self.seen[session] = {sequence}
            self.highest[session] = sequence
            return []
        seen = self.seen[session]
        hole = max(0, min(seen) - sequence - 1) + max(0, sequence - self.highest[session] - 1)
        self.gaps += hole > 0
        self.highest[session] = max(self.highest[session], sequence)
        self.duplicates += sequence in seen
        seen.add(sequence)
        return [hole] if hole else []

    def announced(self, session: int, highest: int) -> int:
        if session not in self.seen or highest <= self.highest[session]:
            return 0
        hole = highest - self.highest[session]
        self.highest[session] = highest
        self.gaps += 1
        return hole


ARRIVALS = st.lists(st.tuples(st.integers(1, 3), st.none() | st.integers(1, 12)), min_size=1, max_size=8)
ANNOUNCEMENTS = st.tuples(st.integers(1, 4), st.integers(0, 14))


@given(st.lists(ARRIVALS | ANNOUNCEMENTS, max_size=20))
def test_any_stream_is_counted_as_the_model_counts_it(steps):
    """Several sessions interleaved: holes, copies, swaps, messages that come late, announcements."""
    tracker, model = SequenceTracker(), Model()
    for step in steps:
        if isinstance(step, list):
            found = tracker.observe([m for session, n in step for m in messages(n, session=session)])
            assert found == [hole for session, n in step for hole in model.observe(session, n)]
        else:
            assert tracker.announced(*step) == model.announced(*step)
        assert counters(tracker) == (model.gaps, model.missing, model.duplicates)


@given(st.sets(st.integers(2, 60)), st.randoms(use_true_random=False), st.integers(1, 10))
def test_known_losses_copies_and_swaps_are_found(lost, random, chunk):
    sequences = [n for n in range(1, 71) if n not in lost]
    copies = random.sample(sequences, 5)
    late = random.sample(sequences[1:], 5)  # not the first: it says where the subscription joined
    stream = [n for n in sequences if n not in late]
    for n in copies:
        stream.insert(stream.index(n) + 1 if n in stream else len(stream), n)
    stream += late
    tracker = SequenceTracker()
    for start in range(0, len(stream), chunk):
        tracker.observe(messages(*stream[start : start + chunk]))
    tracker.announced(1, 70)
    assert (tracker.missing, tracker.duplicates) == (len(lost), 5)


def test_a_subscription_that_joins_late_misses_nothing_before():
    tracker = SequenceTracker()
    assert tracker.observe(messages(1000, 1001)) == []
    assert counters(tracker) == (0, 0, 0)


def test_a_message_that_the_first_one_overtook_is_no_copy():
    tracker = SequenceTracker()
    assert tracker.observe(messages(5, 4, 2)) == [1]
    assert counters(tracker) == (1, 1, 0)
    assert tracker.observe(messages(3, 2)) == []
    assert counters(tracker) == (1, 0, 1)


def test_holes_are_reported_once_and_a_late_message_lowers_what_is_missing():
    tracker = SequenceTracker()
    assert tracker.observe(messages(1, 4, 5, 8)) == [2, 2]
    assert tracker.observe(messages(3, 2, 7)) == []
    assert counters(tracker) == (2, 1, 0)
    assert tracker.observe(messages(3, 8)) == []
    assert counters(tracker) == (2, 1, 2)


def test_a_publisher_that_restarts_is_a_new_stream_and_the_old_one_may_still_trickle_in():
    tracker = SequenceTracker()
    tracker.observe(messages(7, 9, session=1))
    assert tracker.observe(messages(1, 2, session=2) + messages(8, session=1) + messages(3, session=2)) == []
    assert counters(tracker) == (1, 0, 0)


def test_the_last_messages_before_a_silence_are_missed_when_they_are_announced():
    tracker = SequenceTracker()
    assert tracker.announced(1, 5) == 0  # nothing of this publisher was ever seen here
    tracker.observe(messages(1, 2))
    assert tracker.announced(1, 2) == 0
    assert tracker.announced(1, 1) == 0
    assert tracker.announced(1, 5) == 3
    assert tracker.announced(1, 5) == 0
    assert tracker.observe(messages(4, 6)) == []  # one of them was late only, and the next is no new hole
    assert counters(tracker) == (1, 2, 0)


def test_a_foreign_publisher_is_not_counted():
    tracker = SequenceTracker()
    assert tracker.observe([*messages(1, None, 2, None), Message("t", b"")]) == []
    assert counters(tracker) == (0, 0, 0)


def test_a_huge_hole_costs_no_more_than_its_newest_part():
    tracker = SequenceTracker()
    assert tracker.observe(messages(1, 2**64 - 1)) == [2**64 - 3]
    tracker.observe(messages(2**64 - 1 - TRACKED))
    assert counters(tracker) == (1, 2**64 - 4, 0)
    tracker.observe(messages(2**64 - 2 - TRACKED))  # too old to be known as a hole
    assert counters(tracker) == (1, 2**64 - 4, 1)


def test_of_many_holes_the_newest_are_remembered():
    tracker = SequenceTracker()
    tracker.observe(messages(*range(1, 2 * TRACKED + 6, 2)))  # every even one is missing
    assert counters(tracker) == (TRACKED + 2, TRACKED + 2, 0)
    tracker.observe(messages(4))  # forgotten
    assert counters(tracker) == (TRACKED + 2, TRACKED + 2, 1)
    tracker.observe(messages(6))  # the oldest of the newest
    assert counters(tracker) == (TRACKED + 2, TRACKED + 1, 1)


def test_of_many_sessions_the_newest_are_remembered():
    tracker = SequenceTracker()
    for session in range(1, TRACKED + 2):
        tracker.observe(messages(1, session=session))
    assert tracker.observe(messages(9, session=2)) == [7]
    assert tracker.observe(messages(9, session=1)) == []  # forgotten, so it joins anew


def test_the_statistics_are_a_frozen_snapshot():
    stats = SubscriptionStats(4, 1, {"latest": 2}, 0, None, 0, 1, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.received = 5
    assert (stats.received, stats.delivered, stats.queued, stats.queued_peak) == (4, 1, 1, 3)
