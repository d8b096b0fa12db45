"""Feeds subscribers with bytes that were made before the run, so that a measurement of subscribers is not one of a publisher.

The bytes are what the bus writes. A feeder costs hardly any processor time: on two cores the broker and the subscriber
have one each.
"""

from __future__ import annotations

import socket
import time
from functools import cache

from benchmarks.ceilings import nats, redis
from msight_bus.bench.candidates import Target
from msight_bus.bench.jobs import chunk_of

_AHEAD_BYTES = 300_000_000


def _body(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size].replace(b"\n", b" ")


class _Feeder:
    """A blocking socket and chunks of frames."""

    _last_words = b"PING\r\n"

    def _connect(self, host: str, port: int) -> socket.socket:
        made = socket.create_connection((host, port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _chunk(self, number: int) -> list[bytes]:
        raise NotImplementedError

    async def open(self, target: Target) -> None:
        """Make the frames and connect."""
        self._topic, self._size = target.topic, target.size
        self._number = 0
        self._payload = _body(target.size)
        ahead = min(1_500_000, _AHEAD_BYTES // (target.size + 120)) // chunk_of(target.size)
        for number in range(ahead if target.size < 16384 else 0):
            self._chunk(number)
        self._socket = self._open(target)

    def _open(self, target: Target) -> socket.socket:
        raise NotImplementedError

    async def send_many(self, payload: bytes, count: int) -> None:
        """The next chunk; ``count`` is always a chunk."""
        for part in self._chunk(self._number):
            self._socket.sendall(part)
        self._number += 1

    async def send(self, payload: bytes) -> None:
        """Not for latency."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Until the broker has read all; closing a socket with unread answers would cut what is still on its way."""
        self._socket.sendall(self._last_words)
        tail = b""
        while not tail.endswith(b"PONG\r\n"):
            tail = (tail + self._socket.recv(65536))[-16:]

    async def close(self) -> None:
        """Disconnect."""
        self._socket.close()


@cache
def _redis_chunk(topic: str, size: int, number: int) -> list[bytes]:
    count = chunk_of(size)
    head = b"%b%d\r\n" % (redis.head(topic), 32 + size)
    now = time.time_ns()
    pack = redis.PREFIX.pack
    prefixes = [head + pack(redis.MAGIC, 0, redis.SESSION, number * count + n + 1, now) for n in range(count)]
    if size >= 16384:
        return [part for prefix in prefixes for part in (prefix, _cached_body(size), b"\r\n")]
    end = _cached_body(size) + b"\r\n"
    return [b"".join([prefix + end for prefix in prefixes])]


@cache
def _cached_body(size: int) -> bytes:
    return _body(size)


class RedisFeeder(_Feeder):
    """PUBLISH without replies."""

    _last_words = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$2\r\nON\r\n*1\r\n$4\r\nPING\r\n"

    def _chunk(self, number: int) -> list[bytes]:
        return _redis_chunk(self._topic, self._size, number)

    def _open(self, target: Target) -> socket.socket:
        made = self._connect(*target.settings.redis.nodes[0])
        made.sendall(b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n")
        return made


@cache
def _nats_chunk(topic: str, size: int, number: int) -> list[bytes]:
    count = chunk_of(size)
    head = b"HPUB %b %d %d\r\n%b%016x" % (
        topic.encode(), nats.HEADER_BYTES, nats.HEADER_BYTES + size, nats.NAME, nats.SESSION,
    )  # fmt: skip
    now = b"%016x\r\n\r\n" % time.time_ns()
    prefixes = [b"%b%016x%b" % (head, number * count + n + 1, now) for n in range(count)]
    if size >= 16384:
        return [part for prefix in prefixes for part in (prefix, _cached_body(size), b"\r\n")]
    end = _cached_body(size) + b"\r\n"
    return [b"".join([prefix + end for prefix in prefixes])]


class NatsFeeder(_Feeder):
    """HPUB."""

    def _chunk(self, number: int) -> list[bytes]:
        return _nats_chunk(self._topic, self._size, number)

    def _open(self, target: Target) -> socket.socket:
        server = target.settings.nats.servers[0]
        made = self._connect(server.host, server.port)
        made.sendall(nats.CONNECT)
        return made
