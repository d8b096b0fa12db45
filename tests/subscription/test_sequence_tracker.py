"""What is missing and what came twice: against a model that remembers every sequence, and against forgers."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msight_bus.message import Message
from msight_bus.subscription.sequence_tracker import Finding, SequenceTracker

LARGEST = 2**64 - 1
JUMP = 2**20
RATE = 4_000_000
IMPLAUSIBLE = Finding(None, "implausible")
EVICTED = Finding(None, "evicted")


def messages(*sequences: int | None, session: int | None = 1, at: float = 0.0) -> list[Message]:
    return [Message("t", b"", session=session, sequence=sequence, received_at=at) for sequence in sequences]


def lost(missing: int) -> Finding:
    return Finding(missing, "lost")


def counters(tracker: SequenceTracker) -> tuple[int, int, int]:
    return tracker.gaps, tracker.missing, tracker.duplicates


def tracking(*sequences: int, **limits: int) -> SequenceTracker:
    """A tracker at time 0 that has received these from session 1."""
    tracker = SequenceTracker(clock=lambda: 0.0, **limits)
    if sequences:
        assert tracker.observe(messages(*sequences)) == []
    return tracker


class Region:
    """Every sequence received in one region of a session's numbers; regions are too far apart for any publisher."""

    def __init__(self, first: int, highest: int) -> None:
        self.first = first
        self.highest = highest
        self.seen: set[int] = set()

    @property
    def missing(self) -> int:
        return self.highest - self.first + 1 - len(self.seen)


class Model:
    """Keeps everything, for ever."""

    def __init__(self) -> None:
        self.regions: dict[int, dict[int, Region]] = {}
        self.gaps = self.duplicates = 0

    @property
    def missing(self) -> int:
        return sum(region.missing for regions in self.regions.values() for region in regions.values())

    def observe(self, session: int, sequence: int) -> list[Finding]:
        if not sequence:
            return []
        regions = self.regions.setdefault(session, {})
        found = []
        region = regions.get(sequence >> 40)
        if region is None:
            found += [IMPLAUSIBLE] if regions else []
            region = regions[sequence >> 40] = Region(sequence, sequence)
        elif sequence in region.seen:
            self.duplicates += 1
        else:
            hole = max(0, region.first - sequence - 1, sequence - region.highest - 1)
            found += [lost(hole)] if hole else []
            region.first, region.highest = min(region.first, sequence), max(region.highest, sequence)
        region.seen.add(sequence)
        self.gaps += len(found)
        return found

    def announced(self, session: int, highest: int) -> Finding | None:
        regions = self.regions.get(session)
        if not regions or not highest:
            return None
        region = regions.get(highest >> 40)
        if region is not None and highest <= region.highest:
            return None
        self.gaps += 1
        if region is None:
            regions[highest >> 40] = Region(highest + 1, highest)
            return IMPLAUSIBLE
        hole, region.highest = highest - region.highest, highest
        return lost(hole)


NEAR = st.integers(0, 14)
SEQUENCES = NEAR | st.builds(lambda region, n: (region << 40) + 100 + n, st.integers(1, 3), NEAR)
ARRIVALS = st.lists(st.tuples(st.integers(1, 3), SEQUENCES), min_size=1, max_size=8)


class AnyStream(RuleBasedStateMachine):
    """Sessions interleaved: holes, copies, swaps, late messages, announcements, and jumps that nobody can have made."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = SequenceTracker(clock=lambda: 0.0)
        self.model = Model()

    @rule(arrivals=ARRIVALS)
    def receive(self, arrivals):
        batch = [message for session, n in arrivals for message in messages(n, session=session)]
        expected = [finding for session, n in arrivals for finding in self.model.observe(session, n)]
        assert self.tracker.observe(batch) == expected

    @rule(session=st.integers(1, 3), start=st.integers(1, 14), count=st.integers(1, 6))
    def receive_in_order(self, session, start, count):
        self.receive([(session, n) for n in range(start, start + count)])

    @rule(session=st.integers(1, 4), highest=SEQUENCES)
    def announce(self, session, highest):
        assert self.tracker.announced(session, highest) == self.model.announced(session, highest)

    @invariant()
    def counts_agree(self):
        assert counters(self.tracker) == (self.model.gaps, self.model.missing, self.model.duplicates)


TestAnyStream = AnyStream.TestCase
TestAnyStream.settings = settings(max_examples=60, stateful_step_count=20)


ONE_BY_ONE = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.none() | SEQUENCES | st.builds(int.__add__, st.just(JUMP), NEAR),
        st.sampled_from([0.0, 0.0, 1.0, 70.0]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=40,
)
"""Session, sequence (``None``: the next of the session), seconds since the one before, and whether it is announced only."""


@given(ONE_BY_ONE, st.integers(1, 4))
@example([(1, 1, 0.0, False), (1, 2, 1.0, False), (1, 3 * JUMP, 1.0, False), (1, 3, 0.0, False)], 4)
@example([(1, 1, 0.0, False), (2, 1, 0.0, False), (1, 2, 0.0, False), (3, 1, 0.0, False), (1, 9, 0.0, False)], 2)
@example([(1, n, seconds, False) for n, seconds in ((1, 0.0), (2**40, 0.0), (2, 0.0), (3, 70.0), (2**40 + 1, 0.0))], 4)
def test_follows_or_else_observe_accounts_as_observe_alone_does(arrivals, max_sessions):
    now = 0.0
    quick, plain = (SequenceTracker(max_sessions=max_sessions, clock=lambda: now) for _ in range(2))
    last = dict.fromkeys(range(1, 5), 0)
    for session, number, seconds, is_announced in arrivals:
        now += seconds
        sequence = last[session] = last[session] + 1 if number is None else number
        if is_announced:
            assert quick.announced(session, sequence) == plain.announced(session, sequence)
        else:
            batch = messages(sequence, session=session, at=now)
            found = [] if quick.follows(session, sequence, now) else quick.observe(batch)
            assert found == plain.observe(batch)
        assert (*counters(quick), quick.evicted) == (*counters(plain), plain.evicted)
        assert quick.silence(1000.0) == plain.silence(1000.0)


def test_the_next_message_of_a_session_follows():
    tracker = tracking(1)
    assert [tracker.follows(1, sequence, 0.0) for sequence in (2, 3, 3, 5, 0, 4)] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert not tracker.follows(2, 1, 0.0)
    assert counters(tracker) == (0, 0, 0)


@given(st.sets(st.integers(2, 60)), st.randoms(use_true_random=False), st.integers(1, 10))
def test_known_losses_copies_and_swaps_are_found(missing, random, chunk):
    sequences = [n for n in range(1, 71) if n not in missing]
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
    assert (tracker.missing, tracker.duplicates) == (len(missing), 5)


# -- honest publishers


def test_a_subscription_that_joins_late_misses_nothing_before():
    assert counters(tracking(1000, 1001)) == (0, 0, 0)


def test_a_message_that_the_first_one_overtook_is_no_duplicate():
    tracker = tracking()
    assert tracker.observe(messages(5, 4, 2)) == [lost(1)]
    assert counters(tracker) == (1, 1, 0)
    assert tracker.observe(messages(3, 2)) == []
    assert counters(tracker) == (1, 0, 1)


def test_holes_are_found_once_and_a_late_message_lowers_what_is_missing():
    tracker = tracking()
    assert tracker.observe(messages(1, 4, 5, 8)) == [lost(2), lost(2)]
    assert tracker.observe(messages(3, 2, 7)) == []
    assert counters(tracker) == (2, 1, 0)
    assert tracker.observe(messages(3, 8)) == []
    assert counters(tracker) == (2, 1, 2)


def test_a_publisher_that_restarts_is_a_new_session_and_the_old_one_may_still_trickle_in():
    tracker = tracking()
    tracker.observe(messages(7, 9))
    assert tracker.observe(messages(1, 2, session=2) + messages(8) + messages(3, session=2)) == []
    assert counters(tracker) == (1, 0, 0)


def test_the_last_messages_before_a_silence_are_missed_when_they_are_announced():
    tracker = tracking()
    assert tracker.announced(1, 5) is None  # nothing of this publisher was ever seen here
    tracker.observe(messages(1, 2))
    assert tracker.announced(1, 2) is None
    assert tracker.announced(1, 1) is None
    assert tracker.announced(1, 5) == lost(3)
    assert tracker.announced(1, 5) is None
    assert tracker.observe(messages(4, 6)) == []  # one of them was late only, and the next is no new hole
    assert counters(tracker) == (1, 2, 0)


def test_what_has_no_session_or_no_valid_sequence_is_not_counted():
    tracker = tracking()
    assert tracker.observe([*messages(1, None, 0, 2, None), *messages(9, session=None), Message("t", b"")]) == []
    assert tracker.observe(messages(0, session=2) + messages(7, session=2)) == []
    assert tracker.announced(1, 0) is None
    assert counters(tracker) == (0, 0, 0)


# -- jumps that nobody can have made


def test_the_bound_grows_with_the_silence():
    for silence in (0.0, 2.0):
        largest = JUMP + int(RATE * silence)
        assert tracking(1).observe(messages(1 + largest, at=silence)) == [lost(largest - 1)]
        assert tracking(1).observe(messages(2 + largest, at=silence)) == [IMPLAUSIBLE]


def test_the_silence_is_that_of_the_session_whatever_it_last_sent():
    tracker = tracking(1)
    tracker.observe(messages(2, at=100.0))
    assert tracker.observe(messages(JUMP + 4, at=100.0)) == [IMPLAUSIBLE]
    tracker = tracking(1, 2)
    tracker.observe(messages(2, at=100.0))  # a duplicate
    assert tracker.observe(messages(JUMP + 4, at=100.0)) == [IMPLAUSIBLE]
    tracker = SequenceTracker(clock=lambda: 100.0)
    tracker.observe(messages(1))
    tracker.announced(1, 1)
    assert tracker.observe(messages(JUMP + 4, at=100.0)) == [IMPLAUSIBLE]


def test_a_clock_that_is_set_back_forbids_no_plausible_jump():
    tracker = SequenceTracker()
    tracker.observe(messages(1, at=1e9))
    assert tracker.observe(messages(1 + JUMP, at=0.0)) == [lost(JUMP - 1)]


def test_a_jump_back_is_announced_once_and_followed():
    tracker = tracking(JUMP + 100)
    assert tracker.observe(messages(1, 2, JUMP + 101, 3, 5)) == [IMPLAUSIBLE, lost(1)]
    assert counters(tracker) == (2, 1, 0)


def test_announcements_of_both_positions_are_told_apart():
    tracker = tracking(1, 2)
    assert tracker.announced(1, LARGEST) == IMPLAUSIBLE
    assert tracker.announced(1, LARGEST) is None
    assert tracker.announced(1, 2) is None
    assert tracker.announced(1, 4) == lost(2)
    assert tracker.observe(messages(5, LARGEST)) == []  # what was announced may still come
    assert counters(tracker) == (2, 2, 0)


def test_positions_that_come_near_with_time_stay_apart():
    """After a silence both are in reach of each other; each message belongs to the one it continues."""
    far = 3 * JUMP
    tracker = tracking(1)
    assert tracker.observe(messages(far)) == [IMPLAUSIBLE]
    assert tracker.announced(1, far) is None
    assert tracker.observe(messages(2, far + 1, 3, far + 3, far + 2, 5, 4, far + 3, 5, at=10.0)) == [lost(1), lost(1)]
    assert counters(tracker) == (3, 0, 2)
    assert tracker.observe(messages(3 * JUMP - 10, at=20.0)) == [lost(3 * JUMP - 16)]  # forwards from 5, not back


def test_a_position_that_is_passed_goes():
    tracker = tracking(1)
    assert tracker.observe(messages(JUMP + 10)) == [IMPLAUSIBLE]
    assert tracker.observe(messages(JUMP, at=1.0)) == [lost(JUMP - 2)]
    assert tracker.observe(messages(JUMP + 20, at=1.0)) == [lost(9)]  # from the forged one: it is the nearest
    tracker = tracking(1)
    tracker.observe(messages(JUMP + 10))
    assert tracker.observe(messages(*range(JUMP + 1, JUMP + 15))) == [lost(JUMP - 1)]
    assert tracker.duplicates == 0
    assert tracker.observe(messages(JUMP + 11, JUMP + 16)) == [lost(1)]
    assert tracker.duplicates == 1


def test_a_position_goes_when_another_was_continued_for_a_minute():
    far = 2**40
    tracker = tracking(1, 2)
    assert tracker.observe(messages(far)) == [IMPLAUSIBLE]
    assert tracker.observe(messages(far + 1, at=1000.0)) == []  # while none is continued all stay
    assert tracker.observe(messages(3, at=1059.0)) == []  # the other one was continued for less than that
    assert tracker.observe(messages(4, at=1118.9)) == []
    assert tracker.observe(messages(far + 2, at=1118.95)) == []
    assert tracker.observe(messages(5, at=1119.0)) == []  # anew since the forged one was continued
    assert tracker.observe(messages(6, at=1178.9)) == []
    assert tracker.observe(messages(7, at=1179.0)) == []
    assert tracker.observe(messages(far + 3, at=1179.0)) == [IMPLAUSIBLE]
    assert tracker.observe(messages(8, at=1179.0)) == []
    assert counters(tracker) == (2, 0, 0)


def test_copies_continue_nothing():
    far = 2**40
    tracker = tracking(1, 2)
    tracker.observe(messages(far))
    for second in range(100):
        tracker.observe(messages(far, at=float(second)))
    assert tracker.observe(messages(3, far, at=100.0)) == []
    assert counters(tracker) == (1, 0, 101)


def test_single_jumps_however_many_displace_no_position_that_was_continued():
    tracker = tracking(1, 2)
    assert tracker.observe(messages(2**40, 2**40 + 1)) == [IMPLAUSIBLE]
    forged = [n << 50 for n in range(1, 100)]
    assert tracker.observe(messages(*forged)) == [IMPLAUSIBLE] * 99
    assert tracker.observe(messages(3, 2**40 + 2, 5)) == [lost(1)]
    assert tracker.observe(messages(forged[-2] + 1, forged[-1] + 1)) == []  # two are left for single jumps, the newest
    assert tracker.observe(messages(forged[-3] + 1)) == [IMPLAUSIBLE]


def test_of_four_continued_positions_the_longest_idle_one_goes():
    tracker = tracking(1, 2)
    for n in range(1, 4):
        tracker.observe(messages(n << 40, (n << 40) + 1))
    tracker.observe(messages(3, 4))
    assert tracker.observe(messages(4 << 40)) == [IMPLAUSIBLE]
    assert tracker.observe(messages((4 << 40) + 1, 5, (3 << 40) + 2, (2 << 40) + 2)) == []
    assert tracker.observe(messages((1 << 40) + 2)) == [IMPLAUSIBLE]


# -- bounds


def test_of_many_holes_the_newest_are_kept_and_the_others_stay_missing():
    tracker = tracking(max_holes=4)
    assert tracker.observe(messages(*range(1, 14, 2))) == [lost(1)] * 6  # every even one
    assert tracker.observe(messages(2, 4)) == []  # forgotten: late or duplicates, who knows
    assert counters(tracker) == (6, 6, 0)
    assert tracker.observe(messages(6, 8, 12, 13, 6)) == []
    assert counters(tracker) == (6, 3, 2)


def test_holes_are_bounded_over_all_sessions():
    tracker = tracking(max_holes=4)
    for session in range(1, 7):
        assert tracker.observe(messages(1, 4, session=session)) == [lost(2)]
    for session in range(1, 7):
        tracker.observe(messages(2, session=session))
    assert counters(tracker) == (6, 8, 0)


def test_a_late_message_in_the_middle_makes_two_holes():
    tracker = tracking(max_holes=2)
    tracker.observe(messages(1, 10, 20))
    tracker.observe(messages(15))  # 11-14, 16-19; the oldest, 2-9, is forgotten
    tracker.observe(messages(5, 11, 14, 16, 19, 15))
    assert counters(tracker) == (2, 8 + 9 - 5, 1)


def test_losses_that_announcements_reveal_one_by_one_are_one_hole():
    tracker = tracking(1, max_holes=2)
    for highest in range(2, 100):
        assert tracker.announced(1, highest) == lost(1)
    assert tracker.observe(messages(2, 50, 99)) == []
    assert counters(tracker) == (98, 95, 0)


def test_a_hole_that_was_filled_makes_room():
    tracker = tracking(max_holes=2)
    tracker.observe(messages(1, 3))
    for n in range(3, 101, 2):
        tracker.observe(messages(n + 2, n + 1))
    assert tracker.observe(messages(2)) == []
    assert counters(tracker) == (50, 0, 0)


def test_of_many_sessions_the_least_recently_used_goes():
    tracker = tracking(1, max_sessions=4)
    for session in range(2, 12):
        tracker.observe(messages(session))  # session 1 is used throughout
        tracker.observe(messages(1, session=session))
    assert tracker.observe(messages(14)) == [lost(2)]
    assert tracker.observe(messages(9, session=11)) == [lost(7)]
    assert tracker.evicted == 11 - 4
    assert tracker.observe(messages(9, session=3, at=5.0)) == [EVICTED]


def test_an_announcement_is_a_use():
    tracker = tracking(1, max_sessions=4)
    for session in range(2, 12):
        assert tracker.announced(1, 1) is None
        tracker.observe(messages(1, session=session))
    assert tracker.announced(1, 3) == lost(2)


def test_an_eviction_that_can_hide_a_loss_is_announced_at_most_once_a_second():
    tracker = tracking(1, max_sessions=1)
    found = [tracker.observe(messages(1, session=2 + n, at=n / 4)) for n in range(9)]
    assert [n for n, findings in enumerate(found) if findings] == [0, 4, 8]
    assert found[0] == [EVICTED]
    assert tracker.observe(messages(1, session=99, at=0.0)) == [EVICTED]  # the clock was set back
    assert (tracker.evicted, counters(tracker)) == (10, (4, 0, 0))


def test_to_forget_a_publisher_that_announced_its_end_is_no_gap_unless_it_goes_on():
    tracker = tracking(max_sessions=2)
    for session in range(1, 100):
        assert tracker.observe(messages(1, 2, session=session, at=float(session))) == []
        assert tracker.announced(session, 2) is None
    assert (tracker.evicted, counters(tracker)) == (97, (0, 0, 0))
    assert tracker.observe(messages(5, session=50, at=200.0)) == [EVICTED]


def test_a_session_that_begins_is_no_gap_and_nor_is_one_in_its_middle_before_any_was_forgotten():
    tracker = tracking(max_sessions=3)
    for session in range(1, 4):
        assert tracker.observe(messages(5, session=session, at=float(session))) == []


def test_holes_of_forgotten_sessions_and_positions_make_room():
    tracker = tracking(max_sessions=2, max_holes=3)
    for session in range(1, 10):
        tracker.observe(messages(1, 3, 5, session=session))
    tracker.observe(messages(2, session=9))
    assert tracker.missing == 9 * 2 - 1
    assert tracker.observe(messages(4, session=9)) == []
    assert tracker.missing == 9 * 2 - 2


@pytest.mark.parametrize("flood", ["sessions", "holes", "jumps", "splits"])
def test_a_flood_takes_a_bounded_amount_of_memory(flood):
    def batches():
        if flood == "sessions":
            return (messages(1, 5000, session=n) for n in range(1, 35_000))
        if flood == "holes":
            return (messages(*range(n, n + 200, 2)) for n in range(1, 40_000, 200))
        if flood == "jumps":
            return (messages(1, *((n << 40) + n for n in range(1, 9)), session=n % 1000) for n in range(1, 2000))
        return (messages(*range(100_000 - n, 0, -2000)) for n in range(0, 400, 2))

    tracker = tracking(1)
    tracker.observe(messages(100_001))
    tracemalloc.start()
    try:
        for batch in batches():
            tracker.observe(batch)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 25_000_000
