"""`LatestOfEach` against a model: a list of messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from msight_bus import Message
from msight_bus.subscription.latest_of_each import LatestOfEach

TOPICS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "append", "appendleft", "pop_surplus"]), TOPICS)
    | st.tuples(st.just("extend"), st.lists(TOPICS, max_size=5))
    | st.tuples(st.sampled_from(["popleft", "clear"]), st.none()),
    max_size=60,
)


def message(topic):
    return Message(topic, b"x")


@given(STEPS, st.integers(1, 3))
def test_it_is_a_deque_whose_oldest_message_of_a_topic_can_be_removed(steps, limit):
    each, model = LatestOfEach(limit), []
    for step, argument in steps:
        if step == "append":
            one = message(argument)
            each.append(one)
            model.append(one)
        elif step == "appendleft":
            one = message(argument)
            each.appendleft(one)
            model.insert(0, one)
        elif step == "extend":
            more = [message(topic) for topic in argument]
            each.extend(more)
            model += more
        elif step == "popleft" and model:
            assert each.popleft() is model.pop(0)
        elif step == "clear":
            each.clear()
            model.clear()
        elif step == "pop_surplus":
            of_topic = [one for one in model if one.topic == argument]
            surplus = of_topic[0] if len(of_topic) > limit else None
            assert each.pop_surplus(argument) is surplus
            model = [one for one in model if one is not surplus]
        assert list(map(id, each)) == list(map(id, model))
        assert len(each) == len(model)
    assert sum(map(len, each._places.values())) == len(model)
    assert {one.topic for one in model} == set(each._places)
