"""Resubscribing: many subscriptions over a slow link, and subscriptions that end or begin in the meantime."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msight_bus import AuthenticationError, brokers
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import make_backend
from tests.support.peers import Valve
from tests.support.proxy import FaultProxy, port_of, through
from tests.support.receiving import take
from tests.support.rig import LIVE, own_broker, seen, until
from tests.support.scripted_peers import ScriptedPeer, bus_at

QUIET = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}
DELAY = 0.025
"""Seconds that the proxy delays each direction."""

live = pytest.mark.parametrize("kind", LIVE)


# -- many subscriptions


async def enter(stack, subscriptions):
    """Enter all of them at once, and leave them with the stack."""
    await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
    for subscription in subscriptions:
        stack.push_async_exit(subscription)


@asynccontextmanager
async def far_away(kind, count, topic, **variables):
    """A bus with ``count`` subscriptions at a real broker, behind a proxy that delays from the first cut on."""
    backend, events = make_backend(kind), []
    async with FaultProxy(port_of(backend)) as proxy, AsyncExitStack() as stack:
        bus = await stack.enter_async_context(through(proxy, backend).connect(events=events, **QUIET, **variables))
        subscriptions = [bus.subscribe(f"{topic}.t{i}") for i in range(count)]
        await enter(stack, subscriptions)
        proxy.conditions.delay = DELAY
        await proxy.reset()
        yield subscriptions, events
        proxy.conditions.delay = 0  # leaving is another story


@live
async def test_200_subscriptions_come_back_over_a_slow_link(kind, topic):
    """One after the other they would take 10 s, which is the deadline of connecting."""
    async with far_away(kind, 200, topic) as (subscriptions, events):
        await until(lambda: seen(events, Reconnected), within=4)
        async with make_backend(kind).connect() as near:
            for i in range(len(subscriptions)):
                await near.publish(f"{topic}.t{i}", b"%d" % i)
        received = await asyncio.gather(*(take(messages, 1, within=4) for messages in subscriptions))
    assert [message.payload for (message,) in received] == [b"%d" % i for i in range(len(subscriptions))]
    assert len(seen(events, Disconnected)) == 1


class Paced:
    """Delays what a peer writes once it is told to: one answer each ``pause`` seconds on a connection."""

    def __init__(self, pause):
        self.slow = False
        self._pause = pause

    def behind(self, serve):
        """``serve`` with a writer that is paced."""

        async def serve_paced(reader, writer):
            answers: asyncio.Queue = asyncio.Queue()
            paced = writer if not self.slow else _PacedWriter(writer, answers)
            pacing = asyncio.create_task(self._write(writer, answers))
            try:
                await serve(reader, paced)
            finally:
                pacing.cancel()
                await asyncio.wait((pacing,))

        return serve_paced

    async def _write(self, writer, answers):
        while True:
            data = await answers.get()
            if self.slow:
                await asyncio.sleep(self._pause)
            writer.write(data)


class _PacedWriter:
    """What a `Peer` uses of a writer."""

    def __init__(self, writer, answers):
        self._writer = writer
        self._answers = answers
        self.transport = writer.transport

    def write(self, data):
        if data:
            self._answers.put_nowait(data)

    async def drain(self):
        await self._writer.drain()

    def is_closing(self):
        return self._writer.is_closing()


class Serving(ScriptedPeer):
    """A scripted peer behind something that holds or delays what it writes."""

    def __init__(self, kind, way, answer=None):
        super().__init__(kind, answer)
        self._behind_way = way.behind(super().__call__)

    async def __call__(self, reader, writer):
        await self._behind_way(reader, writer)


@live
async def test_the_deadline_is_for_progress_not_for_the_sum(kind):
    """20 answers, each a tenth of a second behind the one before, and less than two seconds for one."""
    pace = Paced(0.1)
    peer = Serving(kind, pace)
    async with bus_at(peer, MSIGHT_CONNECT_TIMEOUT="1.5", **QUIET) as at, AsyncExitStack() as stack:
        await enter(stack, [at.bus.subscribe(f"t{i}") for i in range(20)])
        pace.slow = True
        at.way.cut()
        try:
            await until(lambda: at.seen(Reconnected), within=4)
        finally:
            pace.slow = False
        assert len(at.seen(Disconnected)) == 1


@live
async def test_a_peer_that_confirms_nothing_more_is_left(kind):
    """Progress that ends is noticed: the bus tries again."""
    half = Half(kind)
    async with bus_at(half.peer, MSIGHT_CONNECT_TIMEOUT="0.3", **QUIET) as at:
        (messages,) = await entered(at.bus, "a")
        connections = at.way.connections
        async with half.resubscribing(at):
            await until(lambda: at.way.connections > connections + 4, within=4)
        deliver(half.peer, "a", b"x")
        await take(messages, 1, within=3)
        await leave(messages)


# -- subscriptions that end or begin while the bus resubscribes


class Half:
    """A peer that, told to, confirms subscriptions to nothing but ``quick``, until it is told to confirm the others.

    Attributes:
        asked: topics of subscriptions that wait for their confirmation.
    """

    def __init__(self, kind, refuses=()):
        self.valve = Valve()
        self.holding = False
        self.asked: list[str] = []
        self.peer = Serving(kind, self.valve, self._answer)
        self._kind = kind
        self._refuses = refuses
        self._held: dict[asyncio.Task, dict[bytes, str]] = {}  # by the task that serves the connection

    def _answer(self, command):
        held = self._held.setdefault(asyncio.current_task(), {})
        if command.verb in ("UNSUB", "UNSUBSCRIBE"):
            for address in command.words:
                held.pop(address, None)
        if command.verb not in ("SUB", "SUBSCRIBE"):
            return None
        topic = command.words[0].decode()
        if self.holding and not topic.startswith("_"):
            self.asked.append(topic)
            self.valve.close()
            if topic in self._refuses:
                if self._kind == "redis":
                    return b"-NOPERM No permissions to access a channel\r\n"
                return b"-ERR 'Permissions Violation for Subscription to \"%b\"'\r\n" % command.words[0]
        for address in command.words if self._kind == "redis" else command.words[-1:]:
            held[address] = address.decode() if self._kind == "redis" else topic
        return None

    @asynccontextmanager
    async def resubscribing(self, at):
        """While the bus waits for the confirmations; behind the block they come, and the bus is back."""
        self.holding = True
        at.way.cut()
        await self.peer.until(lambda: self.asked)
        yield
        self.valve.open()
        await until(lambda: at.seen(Reconnected), within=3)

    def subscribed(self):
        """Topics that are subscribed on connections that are open, as the peer's commands say."""
        held = [topic for task, topics in self._held.items() if not task.done() for topic in topics.values()]
        return sorted(topic for topic in held if not topic.startswith("_"))


@asynccontextmanager
async def close_soon(subscription):
    """Close in a task: it may wait for the confirmation. It is done behind the block."""
    closing = asyncio.create_task(subscription.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    try:
        yield
    finally:
        await asyncio.wait((closing,), timeout=4)
        assert closing.done()
        closing.result()


async def entered(bus, *topics):
    """Subscriptions that the test closes itself."""
    subscriptions = [bus.subscribe(topic) for topic in topics]
    for subscription in subscriptions:
        await subscription.__aenter__()
    return subscriptions


async def leave(*subscriptions):
    for subscription in subscriptions:
        await subscription.__aexit__(None, None, None)


def deliver(peer, topic, payload):
    """Send on the newest subscription of a topic."""
    at = next(subscribed for subscribed in reversed(peer.subscriptions) if subscribed.topic == topic)
    at.send(at.message(7, 1, payload))


@live
@pytest.mark.parametrize("closed", [0, 1, 2], ids=["first", "middle", "last"])
async def test_what_is_closed_while_the_bus_resubscribes_does_not_stay(kind, closed):
    half = Half(kind)
    async with bus_at(half.peer, **QUIET) as at:
        subscriptions = await entered(at.bus, "a", "b", "c")
        async with AsyncExitStack() as closing:
            async with half.resubscribing(at):
                await closing.enter_async_context(close_soon(subscriptions.pop(closed)))
        left = sorted({"a", "b", "c"} - {"abc"[closed]})
        await until(lambda: half.subscribed() == left, within=3)
        for messages, topic in zip(subscriptions, left, strict=True):
            deliver(half.peer, topic, topic.encode())
            assert [message.payload for message in await take(messages, 1, within=3)] == [topic.encode()]
        await leave(*subscriptions)
        await until(lambda: half.subscribed() == [], within=3)


@live
async def test_one_that_was_closed_is_refused_and_the_others_come_back(kind):
    half = Half(kind, refuses=("b",))
    async with bus_at(half.peer, **QUIET) as at:
        a, b, c = await entered(at.bus, "a", "b", "c")
        async with AsyncExitStack() as closing:
            async with half.resubscribing(at):
                await closing.enter_async_context(close_soon(b))
        for messages, topic in ((a, "a"), (c, "c")):
            deliver(half.peer, topic, b"x")
            await take(messages, 1, within=3)
        await leave(a, c)


@live
async def test_one_that_is_refused_raises_and_the_others_come_back(kind):
    half = Half(kind, refuses=("b",))
    async with bus_at(half.peer, **QUIET) as at:
        a, b, c = await entered(at.bus, "a", "b", "c")
        async with half.resubscribing(at):
            pass
        with pytest.raises(AuthenticationError):
            await take(b, 1, within=3)
        for messages, topic in ((a, "a"), (c, "c")):
            deliver(half.peer, topic, b"x")
            await take(messages, 1, within=3)
        await leave(a, b, c)


@live
async def test_of_two_of_one_topic_the_one_that_stays_receives(kind):
    half = Half(kind)
    async with bus_at(half.peer, **QUIET) as at:
        one, other = await entered(at.bus, "a", "a")
        async with AsyncExitStack() as closing:
            async with half.resubscribing(at):
                await closing.enter_async_context(close_soon(one))
        await until(lambda: half.subscribed() == ["a"], within=3)
        deliver(half.peer, "a", b"x")
        assert [message.payload for message in await take(other, 1, within=3)] == [b"x"]
        await leave(other)
        await until(lambda: half.subscribed() == [], within=3)


@live
async def test_one_that_is_entered_while_the_bus_resubscribes_receives(kind):
    half = Half(kind)
    async with bus_at(half.peer, **QUIET) as at:
        (a,) = await entered(at.bus, "a")
        async with half.resubscribing(at):
            entering = asyncio.create_task(entered(at.bus, "b"))
            await asyncio.sleep(0.05)
            assert not entering.done()
        (b,) = await entering
        for messages, topic in ((a, "a"), (b, "b")):
            deliver(half.peer, topic, b"x")
            await take(messages, 1, within=3)
        await leave(a, b)
        await until(lambda: half.subscribed() == [], within=3)


@live
async def test_one_that_is_closed_and_entered_again_receives(kind):
    half = Half(kind)
    async with bus_at(half.peer, **QUIET) as at:
        a, b = await entered(at.bus, "a", "b")
        async with AsyncExitStack() as closing:
            async with half.resubscribing(at):
                await closing.enter_async_context(close_soon(b))
                entering = asyncio.create_task(entered(at.bus, "b"))
                await asyncio.sleep(0.05)
        (again,) = await entering
        await until(lambda: half.subscribed() == ["a", "b"], within=3)
        deliver(half.peer, "b", b"x")
        await take(again, 1, within=3)
        await leave(a, again)
        await until(lambda: half.subscribed() == [], within=3)


@live
async def test_the_bus_leaves_while_it_resubscribes(kind):
    half = Half(kind)
    async with bus_at(half.peer, MSIGHT_PONG_TIMEOUT="0.3", **QUIET) as at:
        (a,) = await entered(at.bus, "a")
        half.holding = True
        at.way.cut()
        await half.peer.until(lambda: half.asked)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await at.bus.drain(0.2)
                await leave(a)
                return
    pytest.fail("leaving takes longer than its deadlines")


# -- at real brokers


async def subscribers(kind, port, monitor, topics):
    """How many subscriptions the broker has on topics, by topic."""
    if kind == "redis":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"PUBSUB NUMSUB {' '.join(topics)}\r\n".encode())
        lines = [await reader.readline() for _ in range(1 + 3 * len(topics))]
        writer.close()
        return {topic: int(lines[3 * (i + 1)][1:]) for i, topic in enumerate(topics)}
    reader, writer = await asyncio.open_connection("127.0.0.1", monitor)
    writer.write(b"GET /subsz?subs=1&limit=10000 HTTP/1.0\r\n\r\n")
    text = (await reader.read(-1)).decode()
    writer.close()
    return {topic: text.count(f'"subject": "{topic}"') for topic in topics}


@live
async def test_a_real_broker_keeps_none(kind, topic):
    """Half of 40 subscriptions end while the bus resubscribes over a slow link."""
    monitor = brokers.free_port()
    config = [f'http: "127.0.0.1:{monitor}"'] if kind == "nats" else []
    topics, events = [f"{topic}.t{i}" for i in range(40)], []
    with own_broker(kind, config) as (broker, backend):
        async with FaultProxy(broker.port) as proxy, through(proxy, backend).connect(events=events, **QUIET) as bus:
            subscriptions = [bus.subscribe(each) for each in topics]
            await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
            accepted = proxy.accepted
            proxy.conditions.delay = DELAY
            await proxy.reset()
            await until(lambda: proxy.accepted > accepted)
            await asyncio.sleep(4 * DELAY)
            await asyncio.gather(*(leave(each) for each in subscriptions[::2]))
            await until(lambda: seen(events, Reconnected), within=4)
            proxy.conditions.delay = 0
            wanted = {each: i % 2 for i, each in enumerate(topics)}
            async with asyncio.timeout(2):
                while await subscribers(kind, broker.port, monitor, topics) != wanted:
                    await asyncio.sleep(0.05)
            await asyncio.gather(*(leave(each) for each in subscriptions[1::2]))


# -- a broker that cannot do it now


class CannotNow(ScriptedPeer):
    """A peer that can do nothing at some of the subscriptions to ``a``: Redis runs a script, NATS closes the connection."""

    def __init__(self, kind, *which):
        super().__init__(kind, self._answer)
        self.asked = 0
        self._which = which
        self._closing: list[asyncio.StreamWriter] = []

    def _answer(self, command):
        if self.writers[-1] in self._closing:
            return b""
        if command.verb not in ("SUB", "SUBSCRIBE") or command.words[0] != b"a":
            return None
        self.asked += 1
        if self.asked not in self._which:
            return None
        if self.kind == "redis":
            return b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n"
        self._closing.append(self.writers[-1])
        asyncio.get_running_loop().call_soon(self.writers[-1].close)
        return b"-ERR 'Stale Connection'\r\n"


@live
async def test_what_the_broker_cannot_do_now_ends_no_subscription(kind):
    peer = CannotNow(kind, 2, 3)
    async with bus_at(peer, **QUIET) as at:
        a, b = await entered(at.bus, "a", "b")
        at.way.cut()
        await until(lambda: len([each for each in peer.subscriptions if each.topic == "a"]) > 1, within=4)
        await until(lambda: at.seen(Reconnected), within=4)
        for messages, topic in ((a, "a"), (b, "b")):
            deliver(peer, topic, b"x")
            await take(messages, 1, within=3)
        await leave(a, b)


async def test_a_connection_that_nats_closes_while_one_subscribes_is_no_refusal():
    peer = CannotNow("nats", 1)
    async with bus_at(peer, **QUIET) as at:
        (a,) = await entered(at.bus, "a")
        deliver(peer, "a", b"x")
        await take(a, 1, within=3)
        assert "Stale Connection" in at.seen(Disconnected)[0].reason
        await leave(a)
