"""Moving from a NATS server that will leave: tried again, from whichever moment it is known, and without copies."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from msight_bus.backends.pubsub.reconnecting import ReconnectingConnection
from msight_bus.errors import ConnectionLostError
from msight_bus.events import Disconnected
from msight_bus.settings import Limits
from tests.support.brokers import Backend
from tests.support.listeners import fake, proxy
from tests.support.peers import INFO, Peer
from tests.support.receiving import take
from tests.support.rig import QUICKLY, seen, until


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
        None, Limits(connect_timeout=0.2), publishes=True, on_lost=None, on_back=None, on_refused=None
    )
    owner._subscribed = {Three(): None}
    if answers:
        await owner._restore(Answering(answers=True))
    else:
        with pytest.raises((TimeoutError, ConnectionLostError), match="MSIGHT_CONNECT_TIMEOUT"):
            await owner._restore(Answering(answers=False))
