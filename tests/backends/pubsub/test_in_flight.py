"""What is not confirmed yet: against a model with one entry for each message."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from msight_bus.backends.pubsub.in_flight import InFlight, Request, UnconfirmedRun
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError


class Sender:
    """Keeps what a connection tells a publisher (in_flight.Sender)."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.unconfirmed: UnconfirmedRun | None = None
        self.refusals: list[str] = []
        self.lost = 0
        self.reason: BusError | None = None

    def refused(self, error: BusError) -> None:
        self.refusals.append(str(error))

    def connection_lost(self, count: int, reason: BusError) -> None:
        self.lost += count
        self.reason = reason

    @property
    def unconfirmed_in_its_last_run(self) -> int:
        return 0 if self.unconfirmed is None else self.unconfirmed.count


class InFlightModel(RuleBasedStateMachine):
    """The entries are one for each message, its sender, and one for each request."""

    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        self.in_flight = InFlight()
        self.senders = [Sender("a"), Sender("b")]
        self.entries: list[Sender | Request] = []
        self.answered: list[tuple[Request, bytes]] = []
        self.refused: list[tuple[Request, str]] = []
        self.given_up: list[Request] = []
        self.refusals: dict[Sender, list[str]] = {sender: [] for sender in self.senders}
        self.lost: Counter[Sender] = Counter()
        self.written = 0

    def teardown(self):
        self.loop.close()

    @property
    def requests(self) -> list[Request]:
        return [entry for entry in self.entries if isinstance(entry, Request)]

    def answer(self, entry: Sender | Request | None, reply: bytes = b"") -> None:
        if isinstance(entry, Request) and entry not in self.given_up:
            self.answered.append((entry, reply))

    def pop(self) -> Sender | Request | None:
        return self.entries.pop(0) if self.entries else None

    @rule(which=st.integers(0, 1), times=st.integers(1, 3))
    def wrote(self, which, times):
        for _ in range(times):
            self.in_flight.wrote(self.senders[which])
        self.entries += [self.senders[which]] * times
        self.written += times

    @rule()
    def asked(self):
        request = Request(self.loop)
        self.in_flight.asked(request)
        self.entries.append(request)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 10))
    def whoever_asked_gives_up(self, which):
        request = self.requests[which % len(self.requests)]
        request.answer.cancel()
        self.given_up.append(request)

    @rule(count=st.integers(0, 6))
    def confirm(self, count):
        self.in_flight.confirm(count)
        for _ in range(count):
            self.answer(self.pop())

    @rule()
    def answer_the_oldest(self):
        self.in_flight.answer(b"data")
        self.answer(self.pop(), b"data")

    @rule()
    def refuse(self):
        self.in_flight.refuse(AuthenticationError("no permission"))
        entry = self.pop()
        if isinstance(entry, Sender):
            self.refusals[entry].append("no permission")
        elif entry is not None and entry not in self.given_up:
            self.refused.append((entry, "no permission"))

    @rule()
    def confirm_to_request(self):
        self.in_flight.confirm_to_request()
        if self.requests:
            request = self.requests[0]
            del self.entries[: self.entries.index(request) + 1]
            self.answer(request)

    @rule()
    def cut(self):
        self.in_flight.connection_lost(ConnectionLostError("cut"))
        self.lost.update(entry for entry in self.entries if isinstance(entry, Sender))
        self.refused += [(request, "cut") for request in self.requests if request not in self.given_up]
        self.entries.clear()

    @invariant()
    def same_as_the_model(self):
        assert bool(self.in_flight) == bool(self.entries)
        assert self.in_flight.written == self.written
        assert self.in_flight.oldest_request is next(iter(self.requests), None)
        for request in self.requests:
            assert request.answer.done() == (request in self.given_up)

    @invariant()
    def requests_end_with_their_answer(self):
        for request, reply in self.answered:
            assert (request.answer.result(), request.reply) == (None, reply)
        for request, text in self.refused:
            assert str(request.answer.exception()) == text

    @invariant()
    def senders_know_their_own(self):
        for sender in self.senders:
            assert sender.refusals == self.refusals[sender]
            assert sender.lost == self.lost[sender]
            # whoever has a message here that is not confirmed can tell by its last run
            assert (sender.unconfirmed_in_its_last_run > 0) == (sender in self.entries)


TestInFlightModel = InFlightModel.TestCase
TestInFlightModel.settings = settings(max_examples=50)


def test_a_stream_of_one_sender_is_one_run():
    in_flight, sender, other = InFlight(), Sender(), Sender()
    for _ in range(1000):
        in_flight.wrote(sender)
    run = sender.unconfirmed
    assert (run.sender, run.count) == (sender, 1000)
    in_flight.confirm(999)
    in_flight.wrote(sender)
    assert (sender.unconfirmed, run.count) == (run, 2)
    in_flight.wrote(other)
    in_flight.wrote(sender)
    assert sender.unconfirmed is not run
    in_flight.connection_lost(ConnectionLostError("cut"))
    assert (sender.lost, other.lost, run.count) == (3, 1, 0)
    assert str(sender.reason) == "cut"


def test_a_run_that_was_confirmed_is_not_gone_on_with():
    in_flight, sender = InFlight(), Sender()
    in_flight.wrote(sender)
    in_flight.confirm(1)
    in_flight.wrote(sender)
    in_flight.connection_lost(ConnectionLostError("cut"))
    assert sender.lost == 1


async def test_a_request_divides_a_run():
    """When it is answered, what was written before it has been processed, and what came after it has not."""
    in_flight, sender = InFlight(), Sender()
    request = Request(asyncio.get_running_loop())
    in_flight.wrote(sender)
    in_flight.asked(request)
    in_flight.wrote(sender)
    in_flight.confirm_to_request()
    assert request.answer.done()
    in_flight.connection_lost(ConnectionLostError("cut"))
    assert sender.lost == 1


def test_an_answer_that_nobody_asked_for_confirms_nothing():
    in_flight, sender = InFlight(), Sender()
    in_flight.wrote(sender)
    in_flight.confirm_to_request()
    in_flight.connection_lost(ConnectionLostError("cut"))
    assert sender.lost == 1


def test_nothing_in_flight_is_confirmed_refused_and_lost_as_nothing():
    in_flight = InFlight()
    in_flight.confirm(3)
    in_flight.answer(b"")
    in_flight.confirm_to_request()
    in_flight.refuse(BusError("no"))
    in_flight.connection_lost(ConnectionLostError("cut"))
    assert not in_flight
    assert in_flight.oldest_request is None


async def test_what_the_broker_said_before_its_answer_counts():
    """NATS answers a refused subscription with an error first, and the round trip behind it is still answered."""
    in_flight = InFlight()
    refused, right = (Request(asyncio.get_running_loop()) for _ in range(2))
    in_flight.asked(refused)
    in_flight.asked(right)
    assert in_flight.oldest_request is refused
    refused.error = AuthenticationError("no permission")
    in_flight.confirm(2)
    with pytest.raises(AuthenticationError):
        refused.answer.result()
    assert right.answer.result() is None
    refused.finish(ConnectionLostError("too late"))
    assert isinstance(refused.answer.exception(), AuthenticationError)


async def test_requests_that_are_cut_have_an_error_of_their_own_each():
    in_flight, reason = InFlight(), ConnectionLostError("cut")
    requests = [Request(asyncio.get_running_loop()) for _ in range(2)]
    for request in requests:
        in_flight.asked(request)
    in_flight.connection_lost(reason)
    errors = {id(reason), *(id(request.answer.exception()) for request in requests)}
    assert len(errors) == 3


async def test_a_round_trip_that_nobody_waits_for_fails_in_silence():
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    in_flight = InFlight()
    in_flight.asked(Request(loop))
    in_flight.connection_lost(ConnectionLostError("cut"))
    gc.collect()
    assert complaints == []
