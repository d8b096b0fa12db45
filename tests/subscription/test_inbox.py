"""The counters of many topics: which topic is forgotten, and what is kept of it."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from msight_bus import Message, QueuePolicy
from msight_bus.backends.base import Selection
from msight_bus.events import DeadlineMissed, Gap
from msight_bus.patterns import TopicPattern
from msight_bus.subscription.inbox import Inbox
from tests.support.rig import seen, until


def inbox_of(*topics, most, events=None, queue=None, deadline=None):
    """An inbox that keeps the counters of at most ``most`` topics."""
    selection = Selection(topics, None, queue or QueuePolicy.drop_oldest(1000), "latest", (TopicPattern(">", ".dead"),))
    return Inbox(
        selection,
        counts=True,
        deadline=deadline,
        most=most,
        clock=lambda: 1000.0,
        report=(lambda event: None) if events is None else events.append,
        on_full=lambda: None,
        on_room=lambda: None,
    )


def receive(inbox, topic, *sequences):
    for sequence in sequences:
        inbox.stream(topic).deliver([Message(topic, b"x", session=1, sequence=sequence)])


def known(inbox):
    return {stream.topic: stream.received for stream in inbox.streams}


def test_the_least_recently_used_topic_is_forgotten():
    inbox = inbox_of(most=3)
    for topic in "abc":
        receive(inbox, topic, 1)
    receive(inbox, "a", 2)
    receive(inbox, "d", 1)
    assert (known(inbox), inbox.evicted) == ({"a": 2, "c": 1, "d": 1}, 1)
    receive(inbox, "c", 2)
    receive(inbox, "e", 1)
    assert (known(inbox), inbox.evicted) == ({"c": 2, "d": 1, "e": 1}, 2)


@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.integers(1, 4))
def test_whatever_is_received_the_topic_that_was_used_last_is_kept_longest(topics, most):
    inbox, model = inbox_of(most=most), OrderedDict()
    for topic in topics:
        receive(inbox, topic, None)
        model[topic] = model.pop(topic, 0) + 1
        while len(model) > most:
            model.popitem(last=False)
        assert known(inbox) == model


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2), st.none() | st.integers(1, 9)), max_size=40),
    st.integers(1, 3),
)
def test_follows_or_else_observe_accounts_as_observe_alone_does(arrivals, most):
    """``None``: the next sequence of the session on the topic."""
    events, last = ([], []), {}
    inboxes = quick, plain = [inbox_of(most=most, events=each) for each in events]
    streams = [{topic: inbox.stream(topic) for topic in "abc"} for inbox in inboxes]
    for topic, session, number in arrivals:
        sequence = last[topic, session] = last.get((topic, session), 0) + 1 if number is None else number
        batch = [Message(topic, b"x", session=session, sequence=sequence)]
        if not streams[0][topic].follows(session, sequence, batch[0].received_at):
            streams[0][topic].observe(batch)
        streams[1][topic].observe(batch)
        for inbox in inboxes:
            inbox.put(batch)
        counted = [
            [(one.topic, one.received, one.gaps, one.total_missing, one.duplicates) for one in inbox.streams]
            for inbox in inboxes
        ]
        assert counted[0] == counted[1]
        assert quick.evicted == plain.evicted
    assert events[0] == events[1]


async def test_a_message_that_defers_a_deadline_is_observed():
    inbox = inbox_of("heard", most=1, deadline=60.0)
    receive(inbox, "heard", 1)
    assert not inbox.stream("heard").follows(1, 2, 1000.0)
    assert known(inbox) == {"heard": 1}
    inbox.stop_watching()


def test_a_stream_stays_valid_and_counts_from_the_beginning():
    inbox = inbox_of(most=1)
    first = inbox.stream("a")
    receive(inbox, "a", 1, 3)
    receive(inbox, "b", 1)
    assert first.evicted
    first.deliver([Message("a", b"x", session=1, sequence=9)])
    assert (known(inbox), inbox.evicted, inbox.stream("a") is first) == ({"a": 1}, 2, True)
    assert (first.gaps, first.total_missing) == (0, 0)
    assert (inbox.evicted_gaps.gaps, inbox.evicted_gaps.missing) == (1, 1)
    assert inbox.queue.received == 4


def test_the_sums_contain_what_was_forgotten_and_what_is_found_of_it_later():
    events: list = []
    inbox = inbox_of(most=1, events=events)
    first = inbox.stream("a")
    receive(inbox, "a", 1, 3, 3)
    receive(inbox, "b", 1)
    first.announced(1, 5)
    assert [event for event in events if event.cause == "lost"] == [Gap("a", 1, "lost"), Gap("a", 2, "lost")]
    gone = inbox.evicted_gaps
    assert (gone.gaps, gone.missing, gone.duplicates) == (2, 3, 1)
    first.deliver([Message("a", b"x", session=1, sequence=9)])
    assert (first.gaps, first.total_missing, gone.gaps, gone.missing) == (0, 0, 2, 3)


def test_what_is_missing_on_a_forgotten_topic_is_counted_as_often_as_reported():
    events: list = []
    inbox = inbox_of(most=1, events=events)
    first = inbox.stream("a")
    receive(inbox, "a", 1)
    receive(inbox, "b", 1)
    first.announced(1, 4)
    first.gap(2, "reconnect")
    assert [event for event in events if event.cause != "evicted"] == [Gap("a", 3, "lost"), Gap("a", 2, "reconnect")]
    assert (inbox.evicted_gaps.gaps, inbox.evicted_gaps.missing) == (2, 5)


def test_the_drops_of_a_topic_that_is_received_again_begin_anew():
    inbox = inbox_of(most=1, queue=QueuePolicy.drop_oldest(1))
    first = inbox.stream("a")
    for topic in "aba":
        receive(inbox, topic, 1)
    assert inbox.queue.dropped_of == {"b": {"drop_oldest": 1}}
    receive(inbox, "b", 2)  # drops "a"
    first.deliver([Message("a", b"x", session=1, sequence=2)])
    assert inbox.queue.dropped_of == {"b": {"drop_oldest": 1}}
    assert inbox.queue.dropped == {"drop_oldest": 4}


async def test_a_deadline_of_a_topic_given_by_name_holds_when_its_counters_are_forgotten():
    events: list = []
    inbox = inbox_of("silent", "heard", most=1, events=events, deadline=0.05)
    streams = [inbox.stream("silent"), inbox.stream("heard")]
    inbox.start_watching()
    for number in range(3):
        receive(inbox, f"t{number}", 1)
    assert all(stream.evicted for stream in streams)
    await until(lambda: inbox.deadlines_missed >= 3)
    missed = [event.topic for event in events if isinstance(event, DeadlineMissed)]
    assert sorted(missed) == ["heard", "silent", "t2"]
    streams[1].deliver([Message("heard", b"x", session=1, sequence=1)])
    await until(lambda: inbox.deadlines_missed >= 4)
    inbox.stop_watching()
    assert not any(deadline._timer for deadline in inbox._all_deadlines())


def test_one_gap_a_second_tells_of_topics_that_were_forgotten():
    events: list = []
    inbox = inbox_of(most=2, events=events)
    for number in range(100):
        receive(inbox, f"t{number}", 1)
    assert (inbox.evicted, events) == (98, [Gap("t0", None, "evicted")])
    inbox._eviction_told_at -= 2
    receive(inbox, "t100", 1)
    assert events == [Gap("t0", None, "evicted"), Gap("t98", None, "evicted")]


def test_the_drops_of_forgotten_topics_are_bounded():
    inbox = inbox_of(most=5, queue=QueuePolicy.drop_newest(1))
    for number in range(1000):
        receive(inbox, f"t{number}", 1)
    assert len(inbox.queue.dropped_of) <= 11
    assert inbox.queue.dropped == {"drop_newest": 999}
    assert len(inbox._least_used) <= 5


def test_a_reconnect_is_a_gap_on_each_topic_that_is_known():
    events: list = []
    inbox = inbox_of("a", most=10, events=events)
    inbox.stream("a")
    receive(inbox, "b", 1)
    inbox.gap(None, "reconnect")
    assert events == [Gap("a", None, "reconnect"), Gap("b", None, "reconnect")]


def test_records_that_are_skipped_count_as_received_and_dropped_on_their_topic():
    inbox = inbox_of(most=2)
    receive(inbox, "b", 1)
    inbox.skip("a", 5)
    receive(inbox, "a", 1)
    assert (known(inbox), inbox.queue.received) == ({"b": 1, "a": 6}, 7)
    assert inbox.queue.dropped == {"skipped": 5}
    assert inbox.queue.dropped_of == {"a": {"skipped": 5}}


async def test_a_topic_that_was_forgotten_has_no_deadline_until_it_is_received_again():
    events: list = []
    inbox = inbox_of(most=1, events=events, deadline=0.05)
    inbox.start_watching()
    first = inbox.stream("a")
    receive(inbox, "b", 1)
    await until(lambda: seen(events, DeadlineMissed))
    assert (seen(events, DeadlineMissed), inbox.deadlines_missed) == ([DeadlineMissed("b", 0.05)], 1)
    first.deliver([Message("a", b"x", session=1, sequence=1)])
    await until(lambda: len(seen(events, DeadlineMissed)) == 2)
    assert seen(events, DeadlineMissed)[1] == DeadlineMissed("a", 0.05)
    inbox.stop_watching()
