"""Servers that send data on request of a test: `tests.support.peers.Peer` with a script."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import msight_bus
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings
from tests.support.listeners import Recorder, Serve, fake
from tests.support.peers import Command, Peer
from tests.support.servers import variables

LIVE = ["redis", "nats"]
PUBLISH = {"redis": "PUBLISH", "nats": "HPUB"}
_PREFIX = struct.Struct(">4sIQQQ")
_PUBLISHED_AT = 1_700_000_000 * 10**9
_serving: ContextVar[asyncio.StreamWriter] = ContextVar("_serving")


class Subscribed(NamedTuple):
    """A subscription at the peer; ``address`` is the channel or the subscription id."""

    kind: str
    topic: str
    address: bytes
    writer: asyncio.StreamWriter

    def message(self, session: int, sequence: int, payload: bytes, *, topic: str | None = None) -> bytes:
        """Encode a message of the bus as the broker sends it; ``topic``: the topic that a pattern has matched."""
        if self.kind == "redis":
            body = _PREFIX.pack(b"\xc1MB\x01", 0, session, sequence, _PUBLISHED_AT) + payload
            words = [b"message"] if topic is None else [b"pmessage", self.address]
            words += [self.address if topic is None else topic.encode(), body]
            return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        block = b"NATS/1.0\r\nmsight: %016x%016x%016x\r\n\r\n" % (session, sequence, _PUBLISHED_AT)
        sizes = len(block), len(block) + len(payload)
        return b"HMSG %b %b %d %d\r\n%b%b\r\n" % ((topic or self.topic).encode(), self.address, *sizes, block, payload)

    def send(self, *messages: bytes) -> None:
        """Write ``messages`` in one call."""
        self.writer.write(b"".join(messages))

    def send_and_end(self, *messages: bytes) -> None:
        """Write ``messages`` and the end of the stream to the socket without yielding to the loop."""
        data = b"".join(messages)
        with socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as line:
            assert line.send(data) == len(data)
            line.shutdown(socket.SHUT_WR)


class ScriptedPeer(Peer):
    """A peer that sends data on request of a test.

    Attributes:
        subscriptions: confirmed subscriptions of all connections, except on reserved topics.
        writers: writers of all connections, the oldest first.
    """

    def __init__(
        self,
        kind: str,
        answer: Callable[[Command], bytes | None] | None = None,
        *,
        behind: Callable[[Subscribed], bytes] | None = None,
        then: tuple[Callable[[Command], bool], Serve] | None = None,
    ) -> None:
        """
        Args:
            kind: ``redis`` or ``nats``.
            answer: returns the answer to a command; None: the default answer.
            behind: data after the confirmation of a subscription, in the same write.
            then: see `Peer`.
        """
        super().__init__(kind, self._script, then=then)
        self.kind = kind
        self.subscriptions: list[Subscribed] = []
        self.writers: list[asyncio.StreamWriter] = []
        self._scripted = answer or (lambda command: None)
        self._behind = behind or (lambda subscribed: b"")
        self._unconfirmed: list[Subscribed] = []
        self._waiting: list[asyncio.Future[None]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _serving.set(writer)
        self.writers.append(writer)
        await super().__call__(reader, writer)

    def _script(self, command: Command) -> bytes:
        answer = self._scripted(command)
        if answer is None:
            answer = self._usual(command)
        if command.verb in ("SUB", "SUBSCRIBE", "PSUBSCRIBE"):
            address = command.words[-1]
            subscribed = Subscribed(self.kind, command.words[0].decode(), address, _serving.get())
            if not subscribed.topic.startswith("_"):
                self._unconfirmed.append(subscribed)
        if command.verb in ("PING", "SUBSCRIBE", "PSUBSCRIBE"):  # NATS confirms with the following PONG
            confirmed = [subscribed for subscribed in self._unconfirmed if subscribed.writer is _serving.get()]
            for subscribed in confirmed:
                self._unconfirmed.remove(subscribed)
                self.subscriptions.append(subscribed)
                answer += self._behind(subscribed)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        return answer

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a command after which ``condition`` holds."""
        async with asyncio.timeout(20):
            while not condition():
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.append(waiter)
                await waiter

    def published(self, command: Command) -> tuple[str, bytes]:
        """Return topic and payload of a publish command."""
        payload = command.words[1][_PREFIX.size :] if self.kind == "redis" else command.payload
        return command.words[0].decode(), payload

    def stop_reading(self) -> None:
        """Stop reading, so that the data of the bus stays in the sockets."""
        for writer in self.writers:
            writer.transport.pause_reading()


class At(NamedTuple):
    """A bus that is connected to a scripted peer, its events, and the listener."""

    bus: msight_bus.Bus
    events: list[BusEvent]
    way: Recorder | None

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def round_trips(self, topic: str, n: int = 1) -> None:
        """Wait for ``n`` round trips on the publishing connection."""
        for _ in range(n):
            async with self.bus.publisher(topic) as publisher:
                await publisher.send(b"")

    def seen(self, kind: type[BusEvent]) -> list[BusEvent]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def bus_at(peer: ScriptedPeer, **environ: str) -> AsyncIterator[At]:
    """Yield a bus connected to ``peer``. An exception in the loop's handler fails the test."""
    async with fake(peer) as way:
        async with _connected(variables(peer.kind, way.port), environ, way) as at:
            yield at


@asynccontextmanager
async def bus_at_socket(peer: ScriptedPeer, path: Path, **environ: str) -> AsyncIterator[At]:
    """Yield a bus connected through a Unix socket, whose buffer accepts up to twice `net.core.wmem_max` at once."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        try:
            await peer(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(lambda r, w: tasks.add(asyncio.ensure_future(serve(r, w))), path)
    try:
        async with _connected({"MSIGHT_REDIS_MESSAGE_BROKER_UNIX_SOCKET_PATH": str(path)}, environ, None) as at:
            yield at
    finally:
        server.close()
        for writer in peer.writers:
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


@asynccontextmanager
async def _connected(where: dict[str, str], environ: dict[str, str], way: Recorder | None) -> AsyncIterator[At]:
    events: list[BusEvent] = []
    unhandled: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    settings = BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "redis", **where, **environ})
    try:
        async with msight_bus.connect(settings, on_event=events.append) as bus:
            yield At(bus, events, way)
    finally:
        loop.set_exception_handler(None)
    assert unhandled == []
