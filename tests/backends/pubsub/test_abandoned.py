"""Unsent data of an abandoned connection is discarded: it would arrive late, after newer messages."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import Backend
from tests.support.peers import INFO, answer_nats, answer_redis, read_nats, read_redis
from tests.support.rig import QUICKLY, seen, until
from tests.support.servers import variables

FRAME = bytes(100_000)
FRAMES = (
    20  # more than the peer's receive buffer takes, and less than what the kernel keeps for a peer that does not read
)
KINDS = {
    "redis": (read_redis, answer_redis, b"", "PUBLISH"),
    "nats": (read_nats, answer_nats, b"INFO " + json.dumps(INFO).encode() + b"\r\n", "HPUB"),
}


class Stuck:
    """A peer that answers as usual until it stops reading at the first large message; the connections after it are as usual.

    Attributes:
        stuck: the connection that it does not read, once there is one.
    """

    def __init__(self, kind):
        self._read, self._answer, self._greeting, self._publishes = KINDS[kind]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._listener.setblocking(False)
        self._open: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = self._listener.getsockname()[1]
        self.stuck: socket.socket | None = None

    async def __aenter__(self):
        self._tasks.append(asyncio.create_task(self._accept()))
        return self

    async def __aexit__(self, *exc):
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for each in (self._listener, *self._open):
            each.close()

    async def _accept(self):
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            connection.setblocking(False)
            self._open.append(connection)
            self._tasks.append(asyncio.create_task(self._serve(connection)))

    async def _serve(self, connection):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, self._greeting)
        data = b""
        try:
            while chunk := await loop.sock_recv(connection, 4096):
                data += chunk
                if self.stuck is None and len(data) > 20_000:
                    self.stuck = connection
                    return
                commands, data = self._read(data)
                for command in commands:
                    await loop.sock_sendall(connection, self._answer(command))
        except OSError:
            pass

    async def rest(self):
        """Read what still comes on the connection that was stuck; returns whether it was reset, not ended."""
        loop = asyncio.get_running_loop()
        assert self.stuck is not None
        try:
            while await loop.sock_recv(self.stuck, 65536):
                pass
        except ConnectionResetError:
            return True
        return False


@pytest.mark.parametrize("kind", KINDS)
async def test_the_write_buffer_of_an_abandoned_connection_is_not_sent(kind):
    events: list = []
    async with Stuck(kind) as peer:
        backend = Backend(kind, variables(kind, peer.port))
        async with backend.connect(events=events, **QUICKLY) as bus:
            for _ in range(FRAMES):
                await bus.publish("a", FRAME)
            await until(lambda: seen(events, Disconnected))
            await until(lambda: seen(events, Reconnected))
            async with asyncio.timeout(20):
                assert await peer.rest()
