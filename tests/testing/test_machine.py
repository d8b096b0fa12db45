"""Whatever is published, consumed, closed, cut and injected, in any order: nothing is lost in silence.

A longer search: SIMULATION_EXAMPLES=5000 python -m pytest tests/testing --timeout 3600
A failure prints the steps and a ``@reproduce_failure`` line.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from msight_bus import BusSettings, ConnectionLostError, PublishTimeoutError, QueuePolicy, UnsupportedError
from msight_bus.events import Disconnected, Gap, Reconnected
from msight_bus.testing import Faults, Simulation, VirtualClockLoop
from msight_bus.testing.faults import FAULTS
from tests.support.searches import EXAMPLES

QUIET = 90.0
"""Virtual seconds in which every bus has reconnected and every quiet topic's last sequences were announced."""
PUBLISH_TIMEOUT = 4.0
BUSES = 2
MOST_VIEWS = 5

buses = st.integers(0, BUSES - 1)
topics = st.sampled_from(["a", "a", "a", "b"])
counts = st.integers(1, 30)
queues = st.builds(
    QueuePolicy, st.sampled_from(["block", "drop_oldest", "drop_newest", "latest"]), st.integers(1, 20), st.just(1000)
)
chances = st.floats(0, 0.2)
which = st.integers(0, MOST_VIEWS - 1)


class Tap:
    """A topic's stream, of which somebody else sees each list first."""

    def __init__(self, stream, came):
        self._stream = stream
        self._came = came

    def deliver(self, batch):
        self._came(batch)
        self._stream.deliver(batch)

    def __getattr__(self, name):
        return getattr(self._stream, name)


class View:
    """A subscription, and what truly came to it."""

    def __init__(self, bus, number, topic, group, queue):
        self.bus, self.topic, self.group, self.queue = number, topic, group, queue
        self.messages = bus.subscribe(topic, group_id=group, queue=queue)
        inbox = self.messages._inbox
        inbox._streams[topic] = Tap(inbox.stream(topic), self.came)
        self.arrived = []
        self.place = {}
        self.taken = []
        self.was_cut = False

    def came(self, batch):
        for message in batch:
            self.place[id(message)] = len(self.arrived)
            self.arrived.append(message)

    def numbers(self, publisher):
        """The sequences of one publisher that came, in order."""
        return [m.sequence for m in self.arrived if m.payload.startswith(b"%d:" % publisher)]

    async def take(self):
        message = await anext(self.messages)
        self.taken.append(self.place[id(message)])
        return message


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.simulation = Simulation()
        self.runner = asyncio.Runner(loop_factory=VirtualClockLoop)
        self.loop = self.runner.get_loop()
        self.stack = AsyncExitStack()
        self.buses = []
        self.events = [[] for _ in range(BUSES)]
        self.published = Counter()
        self.views = []
        self.closed = []
        self.away = set()
        self.in_order = True
        self.copied = False

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def live(self, number):
        """One of the open subscriptions; there is always one."""
        return self.views[number % len(self.views)]

    @initialize(bus=buses, topic=topics, queue=queues)
    def connect(self, bus, topic, queue):
        settings = BusSettings(environ={"MSIGHT_PUBLISH_TIMEOUT": str(PUBLISH_TIMEOUT)}, backend="memory")
        for events in self.events:
            simulated = self.simulation.connect(settings, on_event=events.append)
            self.buses.append(self.run(self.stack.enter_async_context(simulated)))
        self._subscribe(bus, topic, queue, None)

    # -- publishers

    async def _publish(self, bus, topic):
        number = self.published[bus, topic] + 1
        await self.buses[bus].publish(topic, b"%d:%d" % (bus, number))
        self.published[bus, topic] = number

    @rule(bus=buses, number=which, n=counts)
    def publish_to_a_view(self, bus, number, n):
        self.publish(bus, self.live(number).topic, n)
        self.let_time_pass(0.01)

    @rule(bus=buses, topic=topics, n=counts)
    def publish(self, bus, topic, n):
        async def burst():
            for _ in range(n):
                await self._publish(bus, topic)

        if bus not in self.away:
            self.run(burst())
            return
        start = self.loop.time()
        with pytest.raises(PublishTimeoutError):
            self.run(burst())
        assert self.loop.time() - start == pytest.approx(PUBLISH_TIMEOUT, abs=0.001)

    @precondition(lambda self: len(self.away) < BUSES)
    @rule(bus=buses, topic=topics, n=counts, back=st.booleans())
    def publish_into_a_cut(self, bus, topic, n, back):
        if bus in self.away:
            return

        async def written():
            async with self.buses[bus].publisher(topic) as publisher:
                await publisher.send(b"%d:%d" % (bus, self.published[bus, topic] + 1))  # waits until it is connected
                for _ in range(n - 1):
                    await publisher.send(b"%d:%d" % (bus, 0))
                self.published[bus, topic] += n
                self.disconnect(bus)

        with pytest.raises(ConnectionLostError, match="never confirmed"):
            self.run(written())
        if back:
            self.reconnect(bus)

    # -- subscribers

    @precondition(lambda self: len(self.views) < MOST_VIEWS)
    @rule(bus=buses, topic=topics, queue=queues, group=st.sampled_from([None, "g"]))
    def subscribe(self, bus, topic, queue, group):
        if bus not in self.away:
            self._subscribe(bus, topic, queue, group)

    def _subscribe(self, bus, topic, queue, group):
        view = View(self.buses[bus], bus, topic, group, queue)
        self.run(self.stack.enter_async_context(view.messages))
        self.views.append(view)

    @rule(number=which, n=st.integers(1, 10))
    def consume(self, number, n):
        async def settle(message):
            await message.ack()
            with pytest.raises(UnsupportedError):
                await message.nack()

        view = self.live(number)
        for _ in range(min(n, view.messages.stats.queued)):
            self.run(settle(self.run(view.take())))

    @rule(number=which, n=counts)
    def consume_a_list(self, number, n):
        view = self.live(number)
        if view.messages.stats.queued:
            batch = self.run(anext(view.messages.batches(n)))
            assert 1 <= len(batch) <= n
            view.taken += [view.place[id(message)] for message in batch]

    @rule(number=which, seconds=st.sampled_from([0.01, 1.0]))
    def wait_for_one_and_give_up(self, number, seconds):
        async def wait(view):
            async with asyncio.timeout(seconds):
                await view.take()

        view = self.live(number)
        try:
            self.run(wait(view))
        except TimeoutError:
            assert view.messages.stats.queued == 0

    @precondition(lambda self: len(self.views) > 1)
    @rule(number=which)
    def close(self, number):
        view = self.live(number)
        self.run(view.messages.close())
        self.views.remove(view)
        self.closed.append(view)

    # -- the network

    @rule(fault=st.sampled_from(FAULTS), topic=st.sampled_from([None, "a", "b"]), times=st.integers(1, 5))
    def inject(self, fault, topic, times):
        self.simulation.inject(fault, topic=topic, times=times)
        self.in_order = self.in_order and fault not in ("reorder", "duplicate")
        self.copied = self.copied or fault == "duplicate"

    @rule(faults=st.builds(Faults, **dict.fromkeys(FAULTS, chances), seed=st.integers(0, 2**32)))
    def let_chance_rule(self, faults):
        self.simulation.faults = faults
        self.in_order = self.in_order and not faults.reorder and not faults.duplicate
        self.copied = self.copied or bool(faults.duplicate)

    @rule(bus=buses)
    def disconnect(self, bus):
        self.simulation.disconnect(self.buses[bus])
        self.away.add(bus)
        for view in self.views:
            view.was_cut = view.was_cut or view.bus == bus

    @precondition(lambda self: self.away)
    @rule(bus=buses)
    def reconnect(self, bus):
        self.simulation.reconnect(self.buses[bus])
        self.away.discard(bus)

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.5, 3.0, 40.0]))
    def let_time_pass(self, seconds):
        self.run(asyncio.sleep(seconds))

    # -- what holds at any time

    @invariant()
    def what_came_is_somewhere(self):
        for view in self.views + self.closed:
            stats = view.messages.stats
            assert stats.received == len(view.arrived)
            assert stats.received == len(view.taken) + stats.queued + sum(stats.dropped.values())
            assert stats.delivered == len(view.taken)

    @invariant()
    def queues_keep_their_bounds(self):
        for view in self.views:
            if view.queue.when_full != "block":  # what a paused read holds is queued too
                assert view.messages.stats.queued_peak <= view.queue.max_messages

    @invariant()
    def order_holds(self):
        for view in self.views + self.closed:
            assert view.taken == sorted(set(view.taken))
            for publisher in range(BUSES) if self.in_order else ():
                numbers = view.numbers(publisher)
                assert numbers == sorted(set(numbers))

    @invariant()
    def a_group_shares(self):
        if not self.copied:
            shared = [view for view in self.views + self.closed if view.group]
            came = Counter((view.topic, m.session, m.sequence) for view in shared for m in view.arrived)
            assert not came or max(came.values()) == 1

    @invariant()
    def connection_events_alternate(self):
        for events in self.events:
            kinds = [type(e) for e in events if not isinstance(e, Gap)]
            assert all(kind is (Reconnected if i % 2 else Disconnected) for i, kind in enumerate(kinds))

    # -- what holds once it is quiet

    @rule()
    def quiet(self):
        """Every message since the first that came of its publisher has come, or is announced as missing."""
        self.simulation.heal()
        self.away.clear()
        self.run(asyncio.sleep(QUIET))
        for view in self.views:
            stats = view.messages.stats
            if view.group:
                assert (stats.missing, stats.duplicates) == (None, None)
                continue
            missing = duplicates = 0
            for publisher in range(BUSES):
                numbers = view.numbers(publisher)
                if numbers:
                    known = self.published[publisher, view.topic] - min(numbers) + 1
                    missing += known - len(set(numbers))
                    duplicates += len(numbers) - len(set(numbers))
            assert (stats.missing, stats.duplicates) == (missing, duplicates)
            assert stats.gaps or not (view.was_cut or missing)
        self._gaps_are_events()

    def _gaps_are_events(self):
        for bus, events in enumerate(self.events):
            for topic in ("a", "b"):
                gaps = [e for e in events if isinstance(e, Gap) and e.topic == topic]
                views = [v for v in self.views + self.closed if (v.bus, v.topic) == (bus, topic)]
                unknown = sum(1 for gap in gaps if gap.missing is None)
                counted = sum(v.messages.stats.gaps or 0 for v in views)
                assert len(gaps) - unknown <= counted <= len(gaps)

    def teardown(self):
        try:
            if self.buses:
                self.quiet()
                self.run(self._drain())
            assert not asyncio.all_tasks(self.loop)
        finally:
            self.runner.close()

    async def _drain(self):
        for view in self.views:
            while view.messages.stats.queued:
                await view.take()
        for bus in self.buses:
            await bus.drain()
        await self.stack.aclose()
        await asyncio.sleep(0)
        current = asyncio.current_task()
        assert asyncio.all_tasks() == {current}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=EXAMPLES, stateful_step_count=40)
TestMachine.pytestmark = [pytest.mark.timeout(400)]  # what fails is then made small
