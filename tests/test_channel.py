"""The queue between a stream and its consumer: against a model first, then how it wakes whoever waits."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msight_bus.channel import Channel
from msight_bus.errors import BusError, BusyError, ClosedError, ConnectionLostError
from msight_bus.message import Message
from msight_bus.queues import QueuePolicy

POLICIES = ["block", "drop_oldest", "drop_newest", "latest"]


class Log:
    """Keeps what was settled (message.Settlement)."""

    def __init__(self) -> None:
        self.settled: list[Message] = []

    def settle(self, message: Message) -> None:
        self.settled.append(message)


def some(n: int, size: int = 1) -> list[Message]:
    return [Message("t", bytes(size), sequence=i) for i in range(n)]


def take(channel: Channel, most: int = 1000) -> list[Message]:
    """What a consumer does: pop from the left, then say how much."""
    taken = [channel.items.popleft() for _ in range(min(most, len(channel.items)))]
    channel.popped(sum(len(message.payload) for message in taken))
    return taken


def at_once(coroutine: Coroutine) -> bool | None:
    """The answer of a `wait` that has no reason to suspend."""
    try:
        coroutine.send(None)
    except StopIteration as answer:
        return answer.value
    coroutine.close()
    raise AssertionError("it suspends")


def size(messages: list[Message]) -> int:
    return sum(len(message.payload) for message in messages)


class Compared:
    """A channel beside a model, which queues, holds or drops one message at a time where the channel takes lists."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.calls: list[str] = []
        self.channel = Channel(policy, on_full=self.on_full, on_room=self.on_room)
        self.log = Log()
        self.queue: list[Message] = []
        self.held: list[Message] = []
        self.in_hand: list[Message] = []
        self.delivered: list[Message] = []
        self.dropped: dict[str, list[Message]] = {}
        self.peak = 0
        self.shedding = self.ended = self.closed = False
        self.error: BusError | None = None

    def on_full(self) -> None:
        self.calls.append("full")

    def on_room(self) -> None:
        self.calls.append("room")
        assert self.half_empty
        self.shedding = False

    @property
    def half_empty(self) -> bool:
        items, policy = self.channel.items, self.policy
        return len(items) <= policy.max_messages // 2 and size(items) <= policy.max_bytes // 2

    @property
    def paused(self) -> bool:
        return self.calls[-1:] == ["full"]

    # -- the model

    def fits(self, message: Message) -> bool:
        return not self.queue or (
            len(self.queue) < self.policy.max_messages
            and size(self.queue) + len(message.payload) <= self.policy.max_bytes
        )

    def drop(self, cause: str, *messages: Message) -> None:
        if messages:
            self.dropped.setdefault(cause, []).extend(messages)

    def admit(self, message: Message) -> None:
        when_full = self.policy.when_full
        if self.closed or self.ended:
            self.drop("closed", message)
        elif self.held or (when_full == "block" and not self.shedding and not self.fits(message)):
            self.held.append(message)
        elif self.fits(message):
            self.queue.append(message)
        elif when_full in ("drop_oldest", "latest"):
            while not self.fits(message):
                self.drop(when_full, self.queue.pop(0))
            self.queue.append(message)
        else:
            self.drop("block_timeout" if when_full == "block" else "drop_newest", message)

    def take_held(self) -> None:
        while self.held and self.fits(self.held[0]):
            self.queue.append(self.held.pop(0))

    # -- what may happen

    def deliver(self, sizes: list[int]) -> None:
        first = len(self.delivered)
        batch = [Message("t", bytes(n), sequence=i, _settlement=self.log) for i, n in enumerate(sizes, first)]
        messages, length = len(self.queue), size(self.queue)
        self.channel.deliver(batch)
        self.delivered += batch
        for message in batch:
            self.admit(message)
        if self.policy.when_full == "block" and batch and not (self.closed or self.ended):
            assert self.paused or self.channel.room  # a feed that reads what fits would wait for ever otherwise
            assert self.paused or not self.held
        # The bounds hold, unless one message is alone, or some were put back on top of a full queue.
        assert len(self.queue) <= max(self.policy.max_messages, messages)
        assert size(self.queue) <= max(self.policy.max_bytes, length) or len(self.queue) == 1

    def pop(self, n: int) -> None:
        taken = take(self.channel, n)
        assert taken == self.queue[:n]
        del self.queue[:n]
        self.in_hand += taken
        if self.held:
            self.take_held()
        else:
            assert not (self.paused and self.half_empty)

    def put_back(self, which: int) -> None:
        if self.in_hand:
            message = self.in_hand.pop(which % len(self.in_hand))
            self.channel.put_back(message)
            if self.closed:
                self.drop("closed", message)
            else:
                self.queue.insert(0, message)

    def discard(self, remainder: int) -> None:
        def unwanted(message: Message) -> bool:
            return message.sequence % 3 == remainder

        self.channel.discard(unwanted, "revoked")
        self.drop("revoked", *filter(unwanted, self.queue + self.held))
        self.queue = [message for message in self.queue if not unwanted(message)]
        self.held = [message for message in self.held if not unwanted(message)]
        self.take_held()

    def shed(self) -> None:
        self.channel.shed()
        if self.paused:
            self.drop("block_timeout", *self.held)
            self.held.clear()
            self.shedding = True

    def end(self) -> None:
        self.channel.end()
        self.ended = True

    def fail(self) -> None:
        error = BusError("broken")
        self.channel.fail(error)
        if self.error is None and not self.ended:
            self.error = error

    def close(self) -> None:
        assert self.channel.close() == len(self.queue) + len(self.held)
        self.drop("closed", *self.queue, *self.held)
        self.queue.clear()
        self.held.clear()
        self.closed = True

    # -- what always holds

    def check(self) -> None:
        self.same_as_the_model()
        self.nothing_is_unaccounted_for()
        self.what_a_policy_dropped_is_settled_and_nothing_else()
        self.a_feed_that_can_wait_is_paused_and_resumed_in_turn()
        self.ended_broken_and_closed_are_told_apart()

    def same_as_the_model(self) -> None:
        self.peak = max(self.peak, len(self.queue))
        assert list(self.channel.items) == self.queue
        assert self.channel.peak == self.peak
        assert self.channel.ended == self.ended
        assert self.channel.dropped == {cause: len(messages) for cause, messages in self.dropped.items()}
        full = self.queue and size(self.queue) >= self.policy.max_bytes
        assert self.channel.room == (0 if full else max(0, self.policy.max_messages - len(self.queue)))

    def nothing_is_unaccounted_for(self) -> None:
        places = [*self.in_hand, *self.queue, *self.held, *itertools.chain(*self.dropped.values())]
        assert self.channel.received == len(self.delivered) == len(places)
        assert set(places) == set(self.delivered)

    def what_a_policy_dropped_is_settled_and_nothing_else(self) -> None:
        by_policy = self.dropped.keys() - {"closed", "revoked"}
        assert Counter(self.log.settled) == Counter(m for cause in by_policy for m in self.dropped[cause])

    def a_feed_that_can_wait_is_paused_and_resumed_in_turn(self) -> None:
        assert self.calls == ["full", "room"] * (len(self.calls) // 2) + ["full"] * (len(self.calls) % 2)
        assert not self.calls or self.policy.when_full == "block"
        assert self.queue or self.closed or not self.paused

    def ended_broken_and_closed_are_told_apart(self) -> None:
        if self.closed:
            with pytest.raises(ClosedError):
                at_once(self.channel.wait())
        elif self.queue:
            assert at_once(self.channel.wait()) is True
        elif self.error is not None:
            with pytest.raises(BusError) as caught:
                at_once(self.channel.wait())
            assert caught.value is self.error
        elif self.ended:
            assert at_once(self.channel.wait()) is False


BOUNDS = st.builds(QueuePolicy, st.just("block") | st.sampled_from(POLICIES), st.integers(1, 6), st.integers(1, 30))
SIZES = st.lists(st.sampled_from([*range(10), 40]), max_size=8)
DELIVER, POP = st.tuples(st.just("deliver"), SIZES), st.tuples(st.just("pop"), st.integers(1, 6))
RARELY = st.one_of(
    st.tuples(st.just("put_back"), st.integers(0, 5)),
    st.tuples(st.just("discard"), st.integers(0, 2)),
    st.tuples(st.just("shed")),
)
STEPS = st.one_of(DELIVER, DELIVER, POP, POP, RARELY)
ENDS = st.sampled_from([("end",), ("fail",), ("close",)])


@settings(max_examples=200)
@given(BOUNDS, st.lists(STEPS, min_size=20, max_size=40), st.lists(STEPS | ENDS, max_size=10))
def test_whatever_happens_it_is_as_the_model_says(policy, steps, last_steps):
    compared = Compared(policy)
    for step, *arguments in steps + last_steps:
        getattr(compared, step)(*arguments)
        compared.check()


@pytest.mark.parametrize("when_full", ["drop_oldest", "latest"])
def test_the_newest_are_kept(when_full):
    channel = Channel(QueuePolicy(when_full, 3))
    channel.deliver(some(7))
    assert [message.sequence for message in take(channel)] == [4, 5, 6]
    assert channel.dropped == {when_full: 4}


def test_block_pauses_at_the_bound_and_holds_what_the_same_read_brought_beyond_it():
    calls: list[str] = []
    channel = Channel(QueuePolicy.block(4), on_full=lambda: calls.append("full"), on_room=lambda: calls.append("room"))
    channel.deliver(some(3))
    assert (calls, channel.room) == ([], 1)
    channel.deliver(some(1))
    assert (calls, channel.room) == (["full"], 0)  # a feed that reads only what fits would wait for ever otherwise
    channel.deliver(some(2))
    assert (calls, len(channel.items), channel.peak) == (["full"], 4, 4)
    take(channel, 2)
    assert (calls, len(channel.items)) == (["full"], 4)  # from what was held
    take(channel, 1)
    assert calls == ["full"]
    take(channel, 1)
    assert (calls, channel.room) == (["full", "room"], 2)


# -- waking


async def turn() -> None:
    """Let every task that was woken run."""
    for _ in range(3):
        await asyncio.sleep(0)


async def suspended(coroutine: Coroutine) -> asyncio.Task:
    task = asyncio.create_task(coroutine)
    await turn()
    assert not task.done()
    return task


async def woken(task: asyncio.Task) -> bool | None:
    await turn()
    assert task.done()
    return task.result()


async def cancelled(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


def stop(channel: Channel, how: str) -> None:
    if how == "fail":
        channel.fail(ConnectionLostError("gone"))
    else:
        getattr(channel, how)()


async def test_each_chunk_wakes_the_consumer_once():
    channel = Channel(QueuePolicy.drop_oldest(100))
    lists: list[int] = []

    async def consume():
        while await channel.wait():
            lists.append(len(take(channel)))

    consumer = await suspended(consume())
    channel.deliver(some(3))
    await turn()
    channel.deliver([])
    await turn()
    channel.deliver(some(2))
    channel.deliver(some(5))
    await turn()
    channel.end()
    await woken(consumer)
    assert lists == [3, 7]


async def test_cancelling_a_wait_loses_nothing():
    channel = Channel(QueuePolicy.block(10))
    await cancelled(await suspended(channel.wait()))
    waiting = await suspended(channel.wait())
    channel.deliver(some(2))
    await cancelled(waiting)  # woken and cancelled in the same turn
    assert at_once(channel.wait())
    assert [message.sequence for message in take(channel)] == [0, 1]


async def test_a_second_consumer_is_refused_and_the_first_still_served():
    channel = Channel(QueuePolicy.block(10))
    first = await suspended(channel.wait())
    with pytest.raises(BusyError):
        at_once(channel.wait())
    with pytest.raises(BusyError):
        at_once(channel.wait_for_more(2, 60))
    channel.deliver(some(1))
    assert await woken(first)


async def test_putting_back_wakes_the_consumer():
    channel = Channel(QueuePolicy.block(10))
    waiting = await suspended(channel.wait())
    (message,) = some(1)
    channel.put_back(message)
    assert await woken(waiting)
    assert take(channel) == [message]


@pytest.mark.parametrize(("how", "error"), [("fail", ConnectionLostError), ("close", ClosedError)])
async def test_a_waiting_consumer_is_told_what_happened(how, error):
    channel = Channel(QueuePolicy.block(10))
    waiting = await suspended(channel.wait())
    stop(channel, how)
    with pytest.raises(error):
        await woken(waiting)


async def test_a_waiting_consumer_learns_of_the_end():
    channel = Channel(QueuePolicy.block(10))
    waiting = await suspended(channel.wait())
    channel.end()
    assert await woken(waiting) is False


@pytest.mark.parametrize("how", ["end", "fail"])
def test_what_is_queued_and_held_is_handed_out_before_the_end(how):
    channel = Channel(QueuePolicy.block(2))
    channel.deliver(some(5))
    stop(channel, how)
    received = 0
    while received < 5:
        assert at_once(channel.wait())
        received += len(take(channel))
    for _ in range(2):
        if how == "end":
            assert at_once(channel.wait()) is False
        else:
            with pytest.raises(ConnectionLostError):
                at_once(channel.wait())


def test_the_first_error_counts_and_none_after_the_end():
    broken, ended = Channel(QueuePolicy.block()), Channel(QueuePolicy.block())
    broken.fail(ConnectionLostError("first"))
    broken.fail(BusError("second"))
    broken.end()
    with pytest.raises(ConnectionLostError, match="first"):
        at_once(broken.wait())
    ended.end()
    ended.fail(BusError("late"))
    assert at_once(ended.wait()) is False


def test_a_channel_that_is_closed_twice_counts_what_was_queued_and_held_once():
    channel = Channel(QueuePolicy.block(2))
    channel.deliver(some(5))
    assert (channel.close(), channel.close()) == (5, 0)
    assert channel.dropped == {"closed": 5}


# -- waiting for more than one


async def test_waiting_for_more_ends_with_the_wanted_number():
    channel = Channel(QueuePolicy.block(100))
    waiting = await suspended(channel.wait_for_more(4, 60))
    channel.deliver(some(2))
    channel.put_back(some(1)[0])
    await turn()
    assert not waiting.done()
    channel.put_back(some(1)[0])
    await woken(waiting)
    waiting = await suspended(channel.wait_for_more(5, 60))
    channel.deliver(some(1))
    await woken(waiting)


async def test_waiting_for_more_does_not_suspend_without_need():
    channel = Channel(QueuePolicy.block(4))
    channel.deliver(some(2))
    at_once(channel.wait_for_more(2, 60))
    at_once(channel.wait_for_more(3, 0))
    channel.deliver(some(2))
    at_once(channel.wait_for_more(5, 60))
    take(channel, 1)
    at_once(channel.wait_for_more(5, 60))  # there is room, but the feed is still paused


async def test_waiting_for_more_ends_in_time_and_leaves_no_timer():
    channel = Channel(QueuePolicy.block(100))
    channel.deliver(some(1))
    await channel.wait_for_more(2, 0.005)
    waiting = await suspended(channel.wait_for_more(2, 0.01))
    channel.deliver(some(1))
    await woken(waiting)
    waiting = await suspended(channel.wait_for_more(3, 60))
    await asyncio.wait((waiting,), timeout=0.03)
    assert not waiting.done()
    await cancelled(waiting)
    take(channel)
    waiting = await suspended(channel.wait())
    channel.deliver(some(1))
    assert await woken(waiting)  # for one: how many were wanted before does not matter any more


@pytest.mark.parametrize("how", ["end", "fail", "close"])
async def test_waiting_for_more_ends_when_nothing_more_comes(how):
    channel = Channel(QueuePolicy.block(100))
    channel.deliver(some(1))
    waiting = await suspended(channel.wait_for_more(2, 60))
    stop(channel, how)
    await woken(waiting)
    at_once(channel.wait_for_more(2, 60))


@pytest.mark.parametrize("when_full", POLICIES)
@pytest.mark.parametrize("sizes", [[1, 1], [9], [12]], ids=["messages", "bytes", "more bytes than fit"])
async def test_waiting_for_more_ends_when_the_queue_takes_no_more(when_full, sizes):
    """Else a consumer waits for messages that a paused feed does not bring, or lets them be dropped meanwhile."""
    channel = Channel(QueuePolicy(when_full, 3, max_bytes=10))
    channel.deliver(some(1))
    waiting = await suspended(channel.wait_for_more(4, 60))
    channel.deliver([Message("t", bytes(n)) for n in sizes])
    await woken(waiting)
    if not channel.room:
        at_once(channel.wait_for_more(4, 60))
