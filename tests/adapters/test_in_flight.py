"""What is not confirmed yet: against a model with one entry for each message."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from msight_bus.adapters.in_flight import InFlight
from msight_bus.errors import ConnectionLostError


class InFlightModel(RuleBasedStateMachine):
    """Messages are their topics, round trips the futures of those who wait."""

    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        self.in_flight = InFlight()
        self.entries: list[str | asyncio.Future[None]] = []
        self.answered: list[asyncio.Future[None]] = []
        self.failed: list[asyncio.Future[None]] = []
        self.given_up: list[asyncio.Future[None]] = []
        self.written = 0

    def teardown(self):
        self.loop.close()

    @property
    def questions(self) -> list[asyncio.Future[None]]:
        return [entry for entry in self.entries if not isinstance(entry, str)]

    def answer(self, question: asyncio.Future[None]) -> None:
        if question not in self.given_up:
            self.answered.append(question)

    @rule(topic=st.sampled_from("ab"), times=st.integers(1, 3))
    def wrote(self, topic, times):
        for _ in range(times):
            self.in_flight.wrote(topic)
        self.entries += [topic] * times
        self.written += times

    @rule()
    def asked(self):
        question = self.loop.create_future()
        self.in_flight.asked(question)
        self.entries.append(question)

    @precondition(lambda self: self.questions)
    @rule(which=st.integers(0, 10))
    def whoever_asked_gives_up(self, which):
        question = self.questions[which % len(self.questions)]
        question.cancel()
        self.given_up.append(question)

    @rule(times=st.integers(1, 3))
    def confirm_one(self, times):
        for _ in range(times):
            entry = self.entries.pop(0) if self.entries else None
            if entry is not None and not isinstance(entry, str):
                self.answer(entry)
                entry = None
            assert self.in_flight.confirm_one() == entry

    @rule()
    def confirm_to_answer(self):
        self.in_flight.confirm_to_answer()
        if self.questions:
            question = self.questions[0]
            del self.entries[: self.entries.index(question) + 1]
            self.answer(question)

    @rule()
    def cut(self):
        error = ConnectionLostError("cut")
        lost = self.in_flight.cut(error)
        assert lost == Counter(entry for entry in self.entries if isinstance(entry, str))
        for question in self.questions:
            if question not in self.given_up:
                assert question.exception() is error
                self.failed.append(question)
        self.entries.clear()

    @invariant()
    def same_as_the_model(self):
        assert bool(self.in_flight) == bool(self.entries)
        assert self.in_flight.written == self.written
        for question in self.questions:
            assert question.done() == (question in self.given_up)
        for question in self.answered:
            assert question.result() is None


TestInFlightModel = InFlightModel.TestCase
TestInFlightModel.settings = settings(max_examples=50)


def test_a_stream_on_one_topic_is_one_entry():
    in_flight = InFlight()
    for _ in range(1000):
        in_flight.wrote("a")
    assert len(in_flight._entries) == 1
    assert in_flight.cut(ConnectionLostError("cut")) == {"a": 1000}


def test_an_answer_that_nobody_asked_for_confirms_nothing():
    in_flight = InFlight()
    in_flight.wrote("a")
    in_flight.confirm_to_answer()
    assert in_flight.cut(ConnectionLostError("cut")) == {"a": 1}


def test_nothing_in_flight_is_confirmed_and_lost_as_nothing():
    in_flight = InFlight()
    assert in_flight.confirm_one() is None
    in_flight.confirm_to_answer()
    assert in_flight.cut(ConnectionLostError("cut")) == {}
    assert not in_flight


async def test_a_round_trip_that_nobody_waits_for_fails_in_silence():
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    in_flight = InFlight()
    in_flight.asked(loop.create_future())
    in_flight.cut(ConnectionLostError("cut"))
    gc.collect()
    assert complaints == []
