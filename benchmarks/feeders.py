"""Feed subscribers with messages that were encoded before the run, so that a publisher does not limit the measurement.

The format is that of the bus. A feeder takes little processor time, so on two cores the broker and the subscriber have one each.
"""

from __future__ import annotations

import socket
import time
from functools import cache
from typing import NamedTuple

from benchmarks.ceilings import nats, redis
from benchmarks.many_topics import topic_of
from msight_bus.bench.jobs import chunk_of
from msight_bus.bench.sides import Target

_AHEAD_BYTES = 300_000_000
_AHEAD_RATE = 1_200_000
"""Messages a second that are encoded in advance: more than any subscriber receives."""


class _Feeder:
    """A blocking socket and chunks of frames."""

    _last_words = b"PING\r\n"

    def __init__(self, topics: int = 0, run: int = 1) -> None:
        """``topics``: number of topics, with ``run`` consecutive messages each; 0: the topic of the plan."""
        self._topics, self._run = topics, run

    def _connect(self, host: str, port: int) -> socket.socket:
        made = socket.create_connection((host, port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _chunk(self, number: int) -> list[bytes]:
        return _chunk(self._stream, number)

    @staticmethod
    def _message(topic: str, size: int, sequence: int, now: int) -> bytes:
        """Return a message up to its payload."""
        raise NotImplementedError

    async def open(self, target: Target) -> None:
        """Encode the messages and connect."""
        self._stream = _Stream(type(self), target.topic, self._topics, self._run, target.size)
        self._number = 0
        ahead = min(int(_AHEAD_RATE * target.seconds), _AHEAD_BYTES // (target.size + 120)) // chunk_of(target.size)
        for number in range(ahead if target.size < 16384 else 0):
            self._chunk(number)
        self._socket = self._open(target)

    def _open(self, target: Target) -> socket.socket:
        raise NotImplementedError

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send the next chunk; ``count`` is always a chunk."""
        for part in self._chunk(self._number):
            self._socket.sendall(part)
        self._number += 1

    async def send(self, payload: bytes) -> None:
        """Not supported: a feeder does not measure latency."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Wait until the broker has read everything; closing a socket with unread replies would discard data in transit."""
        self._socket.sendall(self._last_words)
        tail = b""
        while not tail.endswith(b"PONG\r\n"):
            tail = (tail + self._socket.recv(65536))[-16:]

    async def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class _Stream(NamedTuple):
    kind: type[_Feeder]
    topic: str
    topics: int
    run: int
    size: int


@cache
def _chunk(stream: _Stream, number: int) -> list[bytes]:
    kind, topic, topics, run, size = stream
    count = chunk_of(size)
    now = time.time_ns()
    heads = []
    for n in range(number * count, (number + 1) * count):
        lap, place = divmod(n, (topics or 1) * run)  # each topic has its own sequence
        to = topic_of(topic, place // run) if topics else topic
        heads.append(kind._message(to, size, lap * run + place % run + 1, now))
    if size >= 16384:
        return [part for head in heads for part in (head, _body(size), b"\r\n")]
    end = _body(size) + b"\r\n"
    return [b"".join([head + end for head in heads])]


@cache
def _body(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size].replace(b"\n", b" ")


class RedisFeeder(_Feeder):
    """PUBLISH without replies."""

    _last_words = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$2\r\nON\r\n*1\r\n$4\r\nPING\r\n"

    @staticmethod
    def _message(topic: str, size: int, sequence: int, now: int) -> bytes:
        prefix = redis.PREFIX.pack(redis.MAGIC, 0, redis.SESSION, sequence, now)
        return b"%b%d\r\n%b" % (redis.head(topic), redis.PREFIX.size + size, prefix)

    def _open(self, target: Target) -> socket.socket:
        made = self._connect(*target.settings.redis.nodes[0])
        made.sendall(b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n")
        return made


class NatsFeeder(_Feeder):
    """HPUB."""

    @staticmethod
    def _message(topic: str, size: int, sequence: int, now: int) -> bytes:
        return b"HPUB %b %d %d\r\n%b%016x%016x%016x\r\n\r\n" % (
            topic.encode(), nats.HEADER_BYTES, nats.HEADER_BYTES + size, nats.NAME, nats.SESSION, sequence, now,
        )  # fmt: skip

    def _open(self, target: Target) -> socket.socket:
        server = target.settings.nats.servers[0]
        made = self._connect(server.host, server.port)
        made.sendall(nats.CONNECT)
        return made
