"""Moving from a NATS server that will leave: tried again, from whichever moment it is known, and without copies."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from msight_bus.backends.pubsub import handover
from msight_bus.backends.pubsub.handover import CopyFilter, DeliveryBuffer, DeliveryRecorder
from msight_bus.backends.pubsub.reconnecting import ReconnectingConnection
from msight_bus.backends.pubsub.routes import Route
from msight_bus.errors import ConnectionLostError
from msight_bus.events import Disconnected, Reconnected
from msight_bus.message import Message
from msight_bus.settings import Limits
from tests.support.brokers import Backend
from tests.support.listeners import fake, proxy
from tests.support.peers import INFO, Peer
from tests.support.receiving import take
from tests.support.rig import QUICKLY, seen, until
from tests.support.scripted_peers import ScriptedPeer


def info(**fields):
    return b"INFO " + json.dumps(INFO | fields).encode() + b"\r\n"


class Server:
    """A server that can say that it leaves, and deliver what was published at another one."""

    def __init__(self, **fields):
        self.peer = Peer("nats", self._answer, greeting=info(**fields))
        self.last = b""
        self.sid = b""
        self.writers = []
        self.leaves = False

    async def __call__(self, reader, writer):
        if self.leaves:
            return
        self.writers.append(writer)
        await self.peer(reader, writer)

    @property
    def subscribed(self):
        self.sid = next((c.words[-1] for c in reversed(self.peer.told("SUB")) if c.words[0] == b"a"), b"")
        return bool(self.sid)

    def leave(self):
        """Say so, and take no more connections."""
        self.leaves = True
        self.say(info(ldm=True))

    def say(self, data):
        self.writers[-1].write(data)

    def _answer(self, command):
        if command.verb != "UNSUB":
            return None
        last, self.last = self.last, b""
        return last

    def message(self, published):
        """What was published as HPUB, as HMSG."""
        assert self.subscribed
        head, total = len(published.headers), len(published.headers) + len(published.payload)
        return b"HMSG a %b %d %d\r\n%b%b\r\n" % (self.sid, head, total, published.headers, published.payload)


def at(*ports):
    addresses = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    return Backend("nats", {"MSIGHT_NATS_SERVERS": addresses})


@pytest.fixture(autouse=True)
def _in_order(monkeypatch):
    monkeypatch.setattr("random.shuffle", lambda servers: None)


async def test_a_move_that_fails_is_tried_again_while_the_old_server_serves():
    old, new, events = Server(), Server(), []
    async with fake(old) as here, fake(new) as there, proxy(1) as way:  # nobody listens there yet
        async with at(here.port, way.port).connect(events=events, **QUICKLY) as bus, bus.subscribe("a"):
            tries = way.connections
            old.leave()
            await until(lambda: way.connections >= tries + 3, within=4)
            way.target = there.port
            await until(lambda: new.subscribed, within=4)
    assert not seen(events, Disconnected)


async def test_a_server_that_is_leaving_when_it_is_entered_is_left():
    old, new = Server(ldm=True), Server()
    async with fake(old) as here, fake(new) as there, at(here.port, there.port).connect(**QUICKLY) as bus:
        async with bus.subscribe("a"):
            await until(lambda: new.subscribed, within=4)


async def test_a_server_that_leaves_too_is_not_moved_to():
    old, other = Server(), Server(ldm=True)
    async with fake(old) as here, fake(other) as there, at(here.port, there.port).connect(**QUICKLY) as bus:
        async with bus.subscribe("a"):
            old.leave()
            await until(lambda: [c.words[0] for c in other.peer.told("SUB")].count(b"a") >= 2, within=4)
            assert not old.peer.told("UNSUB")


async def test_what_comes_again_at_the_new_server_a_moment_later_is_no_message():
    old, new = Server(), Server()
    async with fake(old) as here, fake(new) as there, at(here.port, there.port).connect(**QUICKLY) as bus:
        async with bus.subscribe("a") as messages:
            await bus.publish("a", b"1")
            await until(lambda: any(c.payload == b"1" for c in old.peer.told("HPUB")))
            (first,) = [c for c in old.peer.told("HPUB") if c.payload == b"1"]
            old.last = old.message(first)
            old.leave()
            await take(messages, 1)
            await bus.publish("a", b"2")
            await until(lambda: any(c.payload == b"2" for c in new.peer.told("HPUB")))
            (second,) = [c for c in new.peer.told("HPUB") if c.payload == b"2"]
            new.say(new.message(first) + new.message(second))
            assert (await take(messages, 1))[0].payload == b"2"
            assert messages.stats.duplicates == 0


async def test_what_the_new_server_brings_beyond_what_is_held_is_read_when_the_old_one_is_left(monkeypatch):
    monkeypatch.setattr(handover, "_HELD_MESSAGES", 3)
    old = Server()
    new = ScriptedPeer("nats", behind=lambda at: b"".join(at.message(9, i, b"%d" % i) for i in range(1, 6)))
    async with fake(old) as here, fake(new) as there, at(here.port, there.port).connect(**QUICKLY) as bus:
        async with bus.subscribe("a") as messages:
            old.leave()
            assert [message.payload for message in await take(messages, 5)] == [b"1", b"2", b"3", b"4", b"5"]
            (subscribed,) = new.subscriptions
            subscribed.send(subscribed.message(9, 6, b"6"))
            assert (await take(messages, 1))[0].payload == b"6"


async def test_a_bus_that_only_publishes_moves_too(caplog):
    old, new, events = Server(), Server(), []
    async with fake(old) as here, fake(new) as there:
        async with at(here.port, there.port).connect(events=events, **QUICKLY) as bus:
            await bus.publish("a", b"1")
            old.leave()
            await until(lambda: new.peer.told("CONNECT"), within=4)
            await until(lambda: not moves())
            await bus.publish("a", b"2")
            await until(lambda: [command.payload for command in new.peer.told("HPUB")] == [b"2"])
    assert not seen(events, Disconnected)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_move_ends_when_the_old_server_is_lost_before():
    old, new, events = Server(), Server(), []
    async with fake(old) as here, fake(new) as there, proxy(1) as way:  # nobody listens there yet
        async with at(here.port, way.port).connect(events=events, **QUICKLY) as bus, bus.subscribe("a"):
            old.leave()
            await until(lambda: way.connections >= 2, within=4)
            assert moves()
            here.cut()
            way.target = there.port
            await until(lambda: seen(events, Reconnected), within=4)
            await until(lambda: not moves(), within=4)


def moves():
    """The tasks that move to another server."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "msight_bus move"]


class Answering:
    """A connection that answers one request after the other, all within one tick of the clock."""

    received_at = 1.0

    def __init__(self, *, answers):
        self.gone = asyncio.get_running_loop().create_future()
        self._answers = answers
        self._carried = set()
        self._asked = 0

    def carries(self, route):
        return route in self._carried

    def subscribe(self, route):
        self._carried.add(route)
        answer = asyncio.get_running_loop().create_future()
        self._asked += 1
        if self._answers:
            asyncio.get_running_loop().call_later(self._asked * 0.01, answer.set_result, None)
        return SimpleNamespace(answer=answer, error=None)


class Three:
    """A subscription of three topics."""

    paused = False
    inbox = None

    def __init__(self):
        self.routes = [object(), object(), object()]


@pytest.mark.parametrize("answers", [True, False])
async def test_only_what_does_not_answer_is_given_up(answers):
    owner = ReconnectingConnection(
        None, Limits(connect_timeout=0.2), publishes=True, on_lost=None, on_reconnected=None, on_refused=None
    )
    owner._subscribers = {Three(): None}
    if answers:
        await owner._restore(Answering(answers=True))
    else:
        with pytest.raises((TimeoutError, ConnectionLostError), match="MSIGHT_CONNECT_TIMEOUT"):
            await owner._restore(Answering(answers=False))


# -- what is held, handed out and passed over


class Stream:
    """Keeps what is delivered."""

    def __init__(self):
        self.payloads = []

    def deliver(self, batch):
        assert batch
        self.payloads += [message.payload for message in batch]


def to(stream):
    return Route("a", None, stream, lambda error: None)


def foreign(payload):
    return Message("a", payload)


def ours(sequence):
    return Message("a", b"%d" % sequence, session=7, sequence=sequence)


async def test_messages_of_other_makes_are_no_copies_of_each_other():
    stream, recording = Stream(), DeliveryRecorder()
    recording.deliver(to(stream), [foreign(b"old"), ours(1)])
    holding = DeliveryBuffer(lambda: None)
    holding.deliver(to(stream), [foreign(b"held"), ours(1), ours(2)])
    holding.deliver_except(recording.seen)
    connection = SimpleNamespace(loop=asyncio.get_running_loop(), interceptor=None)
    CopyFilter(recording.seen, connection).deliver(to(stream), [ours(1), foreign(b"new"), ours(3)])
    assert stream.payloads == [b"old", b"1", b"held", b"2", b"new", b"3"]


@pytest.mark.parametrize("moved_again", [False, True])
async def test_copies_are_looked_for_no_longer_than_they_come(msight_simulation, moved_again):
    connection = SimpleNamespace(loop=asyncio.get_running_loop())
    connection.interceptor = looking = CopyFilter(set(), connection)
    await asyncio.sleep(handover._COPIES_WITHIN * 0.9)
    assert connection.interceptor is looking
    if moved_again:
        connection.interceptor = recording = DeliveryRecorder()
    await asyncio.sleep(handover._COPIES_WITHIN)
    assert connection.interceptor is (recording if moved_again else None)


def test_what_is_held_and_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(handover, "_HELD_MESSAGES", 5)
    monkeypatch.setattr(handover, "_REMEMBERED", 5)
    asked = []
    holding = DeliveryBuffer(lambda: asked.append(True))
    holding.deliver(to(Stream()), [ours(1), ours(2)])
    holding.deliver(to(Stream()), [ours(3), ours(4)])
    assert not asked
    holding.deliver(to(Stream()), [ours(5)])
    assert asked
    recording = DeliveryRecorder()
    for i in range(10):
        recording.deliver(to(Stream()), [ours(i)])
    assert len(recording.seen) == 5
