"""The queue between a stream and its consumer: against a model first, then how it wakes whoever waits."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msight_bus.errors import BusError, BusyError, ClosedError, ConnectionLostError
from msight_bus.message import Message
from msight_bus.queue_policy import QueuePolicy
from msight_bus.subscription.message_queue import MessageQueue

POLICIES = ["block", "drop_oldest", "drop_newest", "latest"]


class Log:
    """Keeps what was settled (message.Settlement)."""

    def __init__(self) -> None:
        self.settled: list[Message] = []

    def settle(self, message: Message) -> None:
        self.settled.append(message)


def some(n: int, size: int = 1) -> list[Message]:
    return [Message("t", bytes(size), sequence=i) for i in range(n)]


def at_once(coroutine: Coroutine) -> bool | None:
    """The answer of a `wait` that has no reason to wait; it may give the loop a turn."""
    try:
        while coroutine.send(None) is None:
            pass
    except StopIteration as answer:
        return answer.value
    coroutine.close()
    raise AssertionError("it suspends")


def size(messages: list[Message]) -> int:
    return sum(len(message.payload) for message in messages)


class Compared:
    """A queue beside a model, which queues or drops one message at a time where the queue takes lists."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.blocks = policy.when_full == "block"
        self.calls: list[str] = []
        self.queue = MessageQueue(policy, on_full=self.on_full, on_room=self.on_room)
        self.log = Log()
        self.queued: list[Message] = []
        self.unacknowledged: list[Message] = []
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
        messages, policy = self.queue.messages, self.policy
        return len(messages) <= policy.max_messages // 2 and size(messages) <= policy.max_bytes // 2

    @property
    def paused(self) -> bool:
        return self.calls[-1:] == ["full"]

    # -- the model

    def fits(self, message: Message) -> bool:
        return not self.queued or (
            len(self.queued) < self.policy.max_messages
            and size(self.queued) + len(message.payload) <= self.policy.max_bytes
        )

    @property
    def is_over(self) -> bool:
        within = len(self.queued) <= self.policy.max_messages and size(self.queued) <= self.policy.max_bytes
        return len(self.queued) > 1 and not within

    def drop(self, cause: str, *messages: Message) -> None:
        if messages:
            self.dropped.setdefault(cause, []).extend(messages)

    def admit(self, message: Message) -> None:
        when_full = self.policy.when_full
        if self.closed or self.ended:
            self.drop("closed", message)
        elif self.fits(message) or (self.blocks and not self.shedding):
            self.queued.append(message)
        elif when_full in ("drop_oldest", "latest"):
            while not self.fits(message):
                self.drop(when_full, self.queued.pop(0))
            self.queued.append(message)
        else:
            self.drop("block_timeout" if self.blocks else "drop_newest", message)

    # -- what may happen

    def put(self, sizes: list[int]) -> None:
        first = len(self.delivered)
        batch = [Message("t", bytes(n), sequence=i, _settlement=self.log) for i, n in enumerate(sizes, first)]
        messages, length = len(self.queued), size(self.queued)
        shedding = self.shedding
        self.queue.put(batch)
        self.delivered += batch
        for message in batch:
            self.admit(message)
        if self.blocks and batch and not (self.closed or self.ended):
            assert self.paused or self.queue.room  # a stream that reads what fits would wait for ever otherwise
        if not self.blocks or shedding:
            # The bounds hold, unless one message is alone, or some were put back on top of a full queue.
            assert len(self.queued) <= max(self.policy.max_messages, messages)
            assert size(self.queued) <= max(self.policy.max_bytes, length) or len(self.queued) == 1

    def take(self, n: int) -> None:
        taken = self.queue.take(n)
        assert taken == self.queued[:n]
        del self.queued[:n]
        self.unacknowledged += taken
        assert not (self.paused and self.half_empty)

    def take_one_by_hand(self) -> None:
        """As a consumer does that takes from the left itself."""
        if self.queued:
            message = self.queue.messages.popleft()
            self.queue.size -= len(message.payload)
            if self.queue.full:
                self.queue.taken()
            assert message is self.queued.pop(0)
            self.unacknowledged.append(message)

    def requeue(self, which: int) -> None:
        if self.unacknowledged:
            message = self.unacknowledged.pop(which % len(self.unacknowledged))
            self.queue.requeue(message)
            if self.closed:
                self.drop("closed", message)
            else:
                self.queued.insert(0, message)

    def drop_in_hand(self) -> None:
        """A consumer may not hand out all that it took."""
        if self.unacknowledged:
            message = self.unacknowledged.pop()
            self.queue.drop([message], "too old")
            self.drop("too old", message)

    def discard(self, remainder: int) -> None:
        def unwanted(message: Message) -> bool:
            return message.sequence % 3 == remainder

        self.queue.discard(unwanted, "revoked")
        self.drop("revoked", *filter(unwanted, self.queued))
        self.queued = [message for message in self.queued if not unwanted(message)]

    def shed(self) -> None:
        paused = self.paused
        self.queue.shed()
        if paused:
            while self.is_over:
                self.drop("block_timeout", self.queued.pop())
            self.shedding = True

    def end(self) -> None:
        self.queue.end()
        self.ended = True

    def fail(self) -> None:
        error = BusError("broken")
        self.queue.fail(error)
        if self.error is None and not self.ended:
            self.error = error

    def close(self) -> None:
        self.queue.close()
        self.drop("closed", *self.queued)
        self.queued.clear()
        self.closed = True

    # -- what always holds

    def check(self) -> None:
        self.same_as_the_model()
        self.nothing_is_unaccounted_for()
        self.what_a_policy_dropped_is_settled_and_nothing_else()
        self.a_stream_that_can_wait_is_paused_and_resumed_in_turn()
        self.ended_broken_and_closed_are_told_apart()

    def same_as_the_model(self) -> None:
        self.peak = max(self.peak, len(self.queued))
        assert list(self.queue.messages) == self.queued
        assert self.queue.size == size(self.queued)
        assert self.queue.peak == self.peak
        assert self.queue.ended == self.ended
        assert self.queue.dropped == {cause: len(messages) for cause, messages in self.dropped.items()}
        full = self.queued and size(self.queued) >= self.policy.max_bytes
        assert self.queue.room == (0 if full else max(0, self.policy.max_messages - len(self.queued)))

    def nothing_is_unaccounted_for(self) -> None:
        places = [*self.unacknowledged, *self.queued, *itertools.chain(*self.dropped.values())]
        assert self.queue.received == len(self.delivered) == len(places)
        assert set(places) == set(self.delivered)

    def what_a_policy_dropped_is_settled_and_nothing_else(self) -> None:
        by_policy = self.dropped.keys() - {"closed", "revoked"}
        assert Counter(self.log.settled) == Counter(m for cause in by_policy for m in self.dropped[cause])

    def a_stream_that_can_wait_is_paused_and_resumed_in_turn(self) -> None:
        assert self.calls == ["full", "room"] * (len(self.calls) // 2) + ["full"] * (len(self.calls) % 2)
        assert self.queue.full == self.paused
        assert not self.calls or self.blocks
        assert self.queued or self.closed or not self.paused

    def ended_broken_and_closed_are_told_apart(self) -> None:
        if self.closed:
            with pytest.raises(ClosedError):
                at_once(self.queue.wait())
        elif self.queued:
            assert at_once(self.queue.wait()) is True
        elif self.error is not None:
            with pytest.raises(BusError, match="broken") as caught:
                at_once(self.queue.wait())
            assert caught.value is not self.error  # each raise has an error of its own, so that none grows
        elif self.ended:
            assert at_once(self.queue.wait()) is False


BOUNDS = st.builds(QueuePolicy, st.just("block") | st.sampled_from(POLICIES), st.integers(1, 6), st.integers(1, 30))
SIZES = st.lists(st.sampled_from([*range(10), 40]), min_size=1, max_size=8)
PUT, TAKE = st.tuples(st.just("put"), SIZES), st.tuples(st.just("take"), st.integers(1, 6))
RARELY = st.one_of(
    st.tuples(st.just("requeue"), st.integers(0, 5)),
    st.tuples(st.just("discard"), st.integers(0, 2)),
    st.tuples(st.just("shed")),
    st.tuples(st.just("take_one_by_hand")),
    st.tuples(st.just("drop_in_hand")),
)
STEPS = st.one_of(PUT, PUT, TAKE, TAKE, RARELY)
ENDS = st.sampled_from([("end",), ("fail",), ("close",)])


@settings(max_examples=200)
@given(BOUNDS, st.lists(STEPS, min_size=20, max_size=40), st.lists(STEPS | ENDS, max_size=10))
def test_whatever_happens_it_is_as_the_model_says(policy, steps, last_steps):
    compared = Compared(policy)
    for step, *arguments in steps + last_steps:
        getattr(compared, step)(*arguments)
        compared.check()


OF_TOPICS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*range(10), 40])), min_size=1, max_size=8)


@given(
    st.integers(1, 3),
    st.integers(1, 60),
    st.lists(
        st.tuples(st.just("put"), OF_TOPICS)
        | st.tuples(st.just("take"), st.integers(1, 6))
        | st.tuples(st.just("requeue"), st.sampled_from("abc"))
        | st.tuples(st.just("discard"), st.sampled_from("abc")),
        max_size=30,
    ),
)
def test_the_latest_of_each_topic_are_kept_and_the_bytes_bound_all(n, max_bytes, steps):
    queue = MessageQueue(QueuePolicy.latest(n, max_bytes=max_bytes), many=True)
    queued: list[Message] = []
    received, dropped = 0, Counter()
    for step, argument in steps:
        if step == "put":
            batch = [Message(topic, bytes(length)) for topic, length in argument]
            queue.put(list(batch))
            received += len(batch)
            queued += batch
            for topic in "abc":
                of_topic = [message for message in queued if message.topic == topic]
                surplus = of_topic[:-n] if any(message.topic == topic for message in batch) else []
                queued = [message for message in queued if message not in surplus]
                dropped[topic, "latest"] += len(surplus)
            while size(queued) > max_bytes and len(queued) > 1:
                dropped[queued.pop(0).topic, "latest"] += 1
        elif step == "take":
            assert queue.take(argument) == queued[:argument]
            queued = queued[argument:]
        elif step == "requeue":
            queued.insert(0, Message(argument, b"12345"))
            queue.requeue(queued[0])
        else:
            dropped[argument, "revoked"] += sum(message.topic == argument for message in queued)
            queue.discard(lambda message: message.topic == argument, "revoked")  # noqa: B023 - called at once
            queued = [message for message in queued if message.topic != argument]
        assert (list(queue.messages), queue.size, queue.received) == (queued, size(queued), received)
        assert +Counter({(t, cause): n for t, of in queue.dropped_of.items() for cause, n in of.items()}) == +dropped
        assert queue.dropped.total() == dropped.total()
        assert queue.room == (0 if queued and size(queued) >= max_bytes else n)


@pytest.mark.parametrize("when_full", ["drop_oldest", "latest"])
def test_the_newest_are_kept(when_full):
    queue = MessageQueue(QueuePolicy(when_full, 3))
    queue.put(some(7))
    assert [message.sequence for message in queue.take(1000)] == [4, 5, 6]
    assert queue.dropped == {when_full: 4}


def test_block_pauses_at_the_bound_and_queues_what_the_same_read_brought_beyond_it():
    calls: list[str] = []
    queue = MessageQueue(
        QueuePolicy.block(4), on_full=lambda: calls.append("full"), on_room=lambda: calls.append("room")
    )
    queue.put(some(3))
    assert (calls, queue.room) == ([], 1)
    queue.put(some(1))
    assert (calls, queue.room) == (["full"], 0)  # a stream that reads only what fits would wait for ever otherwise
    queue.put(some(2))
    assert (calls, len(queue.messages), queue.peak) == (["full"], 6, 6)
    queue.take(3)
    assert (calls, queue.room) == (["full"], 1)
    queue.take(1)
    assert (calls, queue.room) == (["full", "room"], 2)


def test_what_block_queued_over_the_bound_is_shed_from_the_newest_when_the_stream_can_wait_no_longer():
    queue = MessageQueue(QueuePolicy.block(4))
    queue.put(some(7))
    queue.shed()
    assert [message.sequence for message in queue.messages] == [0, 1, 2, 3]
    queue.put(some(2))
    assert queue.dropped == {"block_timeout": 5}
    queue.take(1)
    queue.put(some(2))
    assert (len(queue.messages), queue.dropped) == (4, {"block_timeout": 6})
    queue.take(2)
    queue.put(some(3))
    assert (len(queue.messages), queue.dropped) == (5, {"block_timeout": 6})  # it blocks again


def test_shedding_a_queue_that_is_not_full_drops_nothing():
    queue = MessageQueue(QueuePolicy.block(4))
    queue.put(some(3))
    queue.shed()
    queue.put(some(3))
    assert (len(queue.messages), queue.dropped) == (6, {})


@pytest.mark.parametrize("done", [True, False])
def test_what_is_dropped_is_counted_by_its_cause_and_settled_if_it_is_done(done):
    queue, log = MessageQueue(QueuePolicy.block()), Log()
    messages = [Message("t", b"", _settlement=log) for _ in range(3)]
    queue.drop(iter(messages), "too old", done=done)
    queue.drop([], "closed")
    assert queue.dropped == {"too old": 3}
    assert log.settled == (messages if done else [])


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


def stop(queue: MessageQueue, how: str) -> None:
    if how == "fail":
        queue.fail(ConnectionLostError("gone"))
    else:
        getattr(queue, how)()


async def test_each_chunk_wakes_the_consumer_once():
    queue = MessageQueue(QueuePolicy.drop_oldest(100))
    lists: list[int] = []

    async def consume():
        while await queue.wait():
            lists.append(len(queue.take(1000)))

    consumer = await suspended(consume())
    queue.put(some(3))
    await turn()
    queue.put(some(2))
    queue.put(some(5))
    await turn()
    queue.end()
    await woken(consumer)
    assert lists == [3, 7]


async def test_cancelling_a_wait_loses_nothing():
    queue = MessageQueue(QueuePolicy.block(10))
    await cancelled(await suspended(queue.wait()))
    waiting = await suspended(queue.wait())
    queue.put(some(2))
    await cancelled(waiting)  # woken and cancelled in the same turn
    assert at_once(queue.wait())
    assert [message.sequence for message in queue.take(1000)] == [0, 1]


async def test_a_second_consumer_is_refused_and_the_first_still_served():
    queue = MessageQueue(QueuePolicy.block(10))
    first = await suspended(queue.wait())
    with pytest.raises(BusyError):
        at_once(queue.wait())
    with pytest.raises(BusyError):
        at_once(queue.wait_for_more(2, 60))
    queue.put(some(1))
    assert await woken(first)


async def test_putting_back_wakes_the_consumer():
    queue = MessageQueue(QueuePolicy.block(10))
    waiting = await suspended(queue.wait())
    (message,) = some(1)
    queue.requeue(message)
    assert await woken(waiting)
    assert queue.take(1000) == [message]


@pytest.mark.parametrize(("how", "error"), [("fail", ConnectionLostError), ("close", ClosedError)])
async def test_a_waiting_consumer_is_told_what_happened(how, error):
    queue = MessageQueue(QueuePolicy.block(10))
    waiting = await suspended(queue.wait())
    stop(queue, how)
    with pytest.raises(error):
        await woken(waiting)


@pytest.mark.parametrize("how", ["fail", "close"])
async def test_whoever_asks_again_and_again_after_an_error_lets_others_run(how):
    queue = MessageQueue(QueuePolicy.block(10))
    stop(queue, how)
    turns: list[bool] = []
    asyncio.get_running_loop().call_soon(turns.append, True)
    for _ in range(3):
        with pytest.raises(BusError):
            await queue.wait()
    assert turns


async def test_a_waiting_consumer_learns_of_the_end():
    queue = MessageQueue(QueuePolicy.block(10))
    waiting = await suspended(queue.wait())
    queue.end()
    assert await woken(waiting) is False


@pytest.mark.parametrize("how", ["end", "fail"])
def test_what_is_queued_is_handed_out_before_the_end(how):
    queue = MessageQueue(QueuePolicy.block(2))
    queue.put(some(5))
    stop(queue, how)
    received = 0
    while received < 5:
        assert at_once(queue.wait())
        received += len(queue.take(1000))
    for _ in range(2):
        if how == "end":
            assert at_once(queue.wait()) is False
        else:
            with pytest.raises(ConnectionLostError):
                at_once(queue.wait())


def test_the_first_error_counts_and_none_after_the_end():
    broken, ended = MessageQueue(QueuePolicy.block()), MessageQueue(QueuePolicy.block())
    broken.fail(ConnectionLostError("first"))
    broken.fail(BusError("second"))
    broken.end()
    with pytest.raises(ConnectionLostError, match="first"):
        at_once(broken.wait())
    ended.end()
    ended.fail(BusError("late"))
    assert at_once(ended.wait()) is False


def test_a_queue_that_is_closed_twice_counts_what_was_queued_once():
    queue = MessageQueue(QueuePolicy.block(2))
    queue.put(some(5))
    queue.close()
    queue.close()
    assert queue.dropped == {"closed": 5}


# -- waiting for more than one


async def test_waiting_for_more_ends_with_the_wanted_number():
    queue = MessageQueue(QueuePolicy.block(100))
    waiting = await suspended(queue.wait_for_more(4, 60))
    queue.put(some(2))
    queue.requeue(some(1)[0])
    await turn()
    assert not waiting.done()
    queue.requeue(some(1)[0])
    await woken(waiting)
    waiting = await suspended(queue.wait_for_more(5, 60))
    queue.put(some(1))
    await woken(waiting)


async def test_waiting_for_more_does_not_suspend_without_need():
    queue = MessageQueue(QueuePolicy.block(4))
    queue.put(some(2))
    at_once(queue.wait_for_more(2, 60))
    at_once(queue.wait_for_more(3, 0))
    queue.put(some(2))
    at_once(queue.wait_for_more(5, 60))
    queue.take(1)
    at_once(queue.wait_for_more(5, 60))  # there is room, but the stream is still paused


async def test_waiting_for_more_ends_in_time_and_leaves_no_timer():
    queue = MessageQueue(QueuePolicy.block(100))
    queue.put(some(1))
    await queue.wait_for_more(2, 0.005)
    waiting = await suspended(queue.wait_for_more(2, 0.01))
    queue.put(some(1))
    await woken(waiting)
    waiting = await suspended(queue.wait_for_more(3, 60))
    await asyncio.wait((waiting,), timeout=0.03)
    assert not waiting.done()
    await cancelled(waiting)
    queue.take(1000)
    waiting = await suspended(queue.wait())
    queue.put(some(1))
    assert await woken(waiting)  # for one: how many were wanted before does not matter any more


@pytest.mark.parametrize("how", ["end", "fail", "close"])
async def test_waiting_for_more_ends_when_nothing_more_comes(how):
    queue = MessageQueue(QueuePolicy.block(100))
    queue.put(some(1))
    waiting = await suspended(queue.wait_for_more(2, 60))
    stop(queue, how)
    await woken(waiting)
    at_once(queue.wait_for_more(2, 60))


@pytest.mark.parametrize("when_full", POLICIES)
@pytest.mark.parametrize("sizes", [[1, 1], [9], [12]], ids=["messages", "bytes", "more bytes than fit"])
async def test_waiting_for_more_ends_when_the_queue_takes_no_more(when_full, sizes):
    """Else a consumer waits for messages that a paused stream does not bring, or lets them be dropped meanwhile."""
    queue = MessageQueue(QueuePolicy(when_full, 3, max_bytes=10))
    queue.put(some(1))
    waiting = await suspended(queue.wait_for_more(4, 60))
    queue.put([Message("t", bytes(n)) for n in sizes])
    await woken(waiting)
    if not queue.room:
        at_once(queue.wait_for_more(4, 60))
