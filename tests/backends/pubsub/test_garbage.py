"""A peer that answers garbage during one reconnect, and is honest again: the bus comes back."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager

import pytest

import msight_bus
from msight_bus import BusError
from msight_bus.events import Reconnected
from msight_bus.settings import BusSettings
from tests.support.listeners import fake
from tests.support.receiving import take
from tests.support.rig import seen, until
from tests.support.scripted_peers import PUBLISH, ScriptedPeer
from tests.support.servers import variables

QUIET = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}
SHORT = {"MSIGHT_CONNECT_TIMEOUT": "0.5", "MSIGHT_PING_INTERVAL": "0.3", "MSIGHT_PONG_TIMEOUT": "0.3"}
SESSION = 7
CONNECTIONS = {"redis": 2, "nats": 1}

EITHER = {
    "many OK": b"+OK\r\n" * 100_000,
    "zeros": bytes(100_000),
    "line ends": b"\r\n" * 100_000,
    "a line without end": b"+" + b"x" * 200_000,
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x46",
    "not UTF-8": b"\xff\xfe\xfd\r\n" * 100,
}
GARBAGE = {
    "redis": EITHER
    | {
        "many PONG": b"+PONG\r\n" * 100_000,
        "errors": b"-ERR x\r\n" * 10_000,
        "deep arrays": b"*1\r\n" * 100_000,
        "negative sizes": b"$-5\r\n*-7\r\n",
        "numbers": b":99999999999999999999999999\r\n:abc\r\n",
        "RESP3": b"%1\r\n+a\r\n+b\r\n>2\r\n+a\r\n+b\r\n_\r\n#t\r\n,1.5\r\n",
        "nulls": b"$-1\r\n*-1\r\n*0\r\n" * 100,
        "confirmations of nothing": b"*3\r\n$9\r\nsubscribe\r\n$1\r\nz\r\n:1\r\n" * 1000,
        "a malformed confirmation": b"*3\r\n$9\r\nsubscribe\r\n*0\r\n$-1\r\n*1\r\n$9\r\nsubscribe\r\n",
        "a malformed message": b"*3\r\n$7\r\nmessage\r\n$-1\r\n$-1\r\n*2\r\n$7\r\nmessage\r\n:1\r\n",
    },
    "nats": EITHER
    | {
        "many PONG": b"PONG\r\n" * 100_000,
        "many PING": b"PING\r\n" * 10_000,
        "errors": b"-ERR 'x'\r\n" * 10_000,
        "INFO that is no JSON": b"INFO {\r\n",
        "INFO that is no object": b"INFO []\r\n",
        "INFO of wrong types": b'INFO {"max_payload": "x", "connect_urls": 7, "headers": [], "nonce": {}, "ldm": "x"}\r\n',
        "deep INFO": b"INFO " + b"[" * 30_000 + b"\r\n",
        "negative sizes": b"MSG a 1 -5\r\n\r\nHMSG a 1 9 3\r\nxxx\r\n",
        "messages of nobody": b"MSG a 999 1\r\nx\r\n" * 1000,
        "a malformed message": b"MSG a\r\nHMSG a 1 x y\r\n",
        "a malformed permission": b'-ERR \'Permissions Violation for Subscription to "" (sid "x")\'\r\n',
    },
}
PLACES = ["first", "instead", "behind"]


def cases(places):
    """Every garbage in every place."""
    every = [(kind, name, place) for kind in GARBAGE for name in GARBAGE[kind] for place in places]
    return pytest.mark.parametrize(("kind", "name", "place"), every)


class Dishonest(ScriptedPeer):
    """Sends garbage on the connections that come between `lie` and as many as the bus opens in one reconnect."""

    def __init__(self, kind: str, garbage: bytes, place: str) -> None:
        """``place``: first on a connection, instead of answers, or behind each."""
        super().__init__(kind, self._lie)
        self._garbage = garbage
        self._place = place
        self._lies = 0
        self._lying: set[asyncio.Task] = set()

    def lie(self) -> None:
        """Be dishonest in the next reconnect."""
        self._lies = CONNECTIONS[self.kind]

    async def __call__(self, reader, writer) -> None:
        task = asyncio.current_task()
        if self._lies:
            self._lies -= 1
            self._lying.add(task)
            if self._place == "first":
                writer.write(self._garbage)
        try:
            await super().__call__(reader, writer)
        finally:
            self._lying.discard(task)

    def _lie(self, command) -> bytes | None:
        if asyncio.current_task() not in self._lying or self._place == "first":
            return None
        if self._place == "instead":
            return self._garbage
        return self._usual(command) + self._garbage


@asynccontextmanager
async def lied_to(kind, garbage, place):
    """A bus, its peer, its events and what listens; an exception that reaches the loop's handler fails the test."""
    unhandled: list = []
    events: list = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    peer = Dishonest(kind, garbage, place)
    try:
        async with fake(peer) as way:
            environ = {"MSIGHT_PUBSUB_BACKEND": kind, **variables(kind, way.port), **QUIET, **SHORT}
            settings = BusSettings(environ=environ)
            yield settings, peer, events, way
    finally:
        loop.set_exception_handler(None)
    assert unhandled == []


@cases(PLACES)
async def test_a_bus_comes_back_when_its_peer_is_honest_again(kind, name, place):
    async with lied_to(kind, GARBAGE[kind][name], place) as (settings, peer, events, way):
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe("a") as messages:
            peer.lie()
            way.cut()
            await until(lambda: seen(events, Reconnected), within=20)
            async with asyncio.timeout(20):
                await flows(bus, peer, messages)


async def flows(bus, peer, messages):
    """Until a message comes, and one is confirmed."""
    waiting = asyncio.create_task(take(messages, 1))
    try:
        for sequence in range(1, 1000):
            at = peer.subscriptions[-1]
            if not at.writer.is_closing():
                at.send(at.message(SESSION, sequence, b"x"))
            if (await asyncio.wait((waiting,), timeout=0.02))[0]:
                break
        await waiting
    finally:
        waiting.cancel()
        await asyncio.wait((waiting,))
    payload = os.urandom(8)
    while payload not in [peer.published(command)[1] for command in peer.told(PUBLISH[peer.kind])]:
        try:
            async with bus.publisher("b") as publisher:
                await publisher.send(payload)
        except BusError:
            await asyncio.sleep(0.02)


@cases(["behind"])
async def test_connecting_to_it_raises_a_bus_error_or_nothing(kind, name, place, caplog):
    """What has no meaning where it comes may be passed over."""
    caplog.set_level(logging.CRITICAL)
    async with lied_to(kind, GARBAGE[kind][name], place) as (settings, peer, _, _):
        peer.lie()
        try:
            async with msight_bus.connect(settings) as bus, bus.subscribe("a"):
                pass
        except BusError:
            pass
