"""A TCP proxy between a bus and its broker that injects network faults from a seed.

The proxy runs on the event loop of the test and on plain sockets, so that a single forwarded byte is a single read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.brokers import Backend

HOST = "127.0.0.1"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CHUNK = 64 * 1024
_SEGMENT = 1400
_SHARES = 50
"""A direction with a limited rate reads and forwards this fraction of a second's data at a time."""


@dataclass
class NetworkConditions:
    """How data is forwarded.

    Attributes:
        delay: delay of each chunk, in seconds.
        rate: bytes a second in each direction of a connection; ``None``: no limit.
        uplink: bytes a second towards the broker; overrides ``rate`` there.
        slices: maximum bytes of the random parts in which chunks are forwarded; ``None``: whole chunks.
        login: delay of the first chunk of a connection towards the broker, in seconds.
    """

    delay: float = 0.0
    rate: float | None = None
    uplink: float | None = None
    slices: int | None = None
    login: float = 0.0


class _Pair:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, broker: socket.socket) -> None:
        self.sides = (client, broker)
        self.left: int | None = None
        self.vanished = False
        self.tasks: list[asyncio.Task[None]] = []

    def close(self, *, reset: bool) -> None:
        for side in self.sides:
            with contextlib.suppress(OSError):
                if reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.close()


class FaultProxy:
    """Forwards connections to a broker on loopback and injects faults.

    Attributes:
        port: port of the proxy.
        conditions: how data is forwarded.
        accepted: number of accepted connections.
        faults: number of connections that were reset or closed early.
    """

    def __init__(self, broker_port: int = 0, *, seed: int = 0, receive_buffer: int | None = None) -> None:
        """
        Args:
            broker_port: port of the broker on loopback.
            seed: seed of the random faults.
            receive_buffer: size of the kernel's receive buffer for clients, in bytes; a small buffer makes TCP acknowledge no
                faster than the proxy forwards, in segments of the size of a real network.
        """
        self.broker_port = broker_port
        self.conditions = NetworkConditions()
        self.accepted = 0
        self.faults = 0
        self._rng = random.Random(seed)
        self._pairs: set[_Pair] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._vanished = False
        self._listener = socket.socket()
        if receive_buffer is not None:  # set before listening, so that accepted sockets inherit it
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
        self._listener.bind((HOST, 0))
        self._listener.listen()
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._accepting = asyncio.create_task(self._accept(), name="proxy")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._accepting is not None
        self._accepting.cancel()
        await asyncio.wait((self._accepting,))
        self._listener.close()
        await asyncio.gather(*(self._end(pair, reset=True) for pair in list(self._pairs)), *self._ending)

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._pairs)

    # -- faults

    def stall(self) -> None:
        """Simulate half-open connections: accept connections and data, and forward nothing."""
        self._flowing.clear()

    def flow(self) -> None:
        """Resume forwarding."""
        self._flowing.set()

    def vanish(self) -> None:
        """Drop all data silently, in both directions; affected connections do not recover."""
        self._vanished = True
        for pair in self._pairs:
            pair.vanished = True

    def appear(self) -> None:
        """Forward new connections again; connections that lost data stay silent, as after a router lost their state."""
        self._vanished = False

    async def reset(self) -> None:
        """Reset every connection (RST)."""
        self.faults += len(self._pairs)
        await asyncio.gather(*(self._end(pair, reset=True) for pair in list(self._pairs)))

    def cut_after(self, n: int) -> None:
        """Close each open connection (FIN) after its next ``n`` bytes of either direction."""
        for pair in self._pairs:
            pair.left = n

    # -- forwarding

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self.accepted += 1
            broker = socket.socket()
            broker.setblocking(False)
            pair = _Pair(client, broker)
            try:
                await loop.sock_connect(broker, (HOST, self.broker_port))
            except OSError:
                pair.close(reset=True)
                continue
            except BaseException:
                pair.close(reset=True)
                raise
            pair.vanished = self._vanished
            self._pairs.add(pair)
            for side in pair.sides:
                side.setblocking(False)
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target in (pair.sides, pair.sides[::-1]):
                pair.tasks.append(asyncio.create_task(self._forward(pair, source, target), name="proxy pair"))

    async def _forward(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                await self._copy(pair, source, target)
        finally:
            self._end_soon(pair)

    async def _copy(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        up = source is pair.sides[0]
        held = self.conditions.login if up else 0
        while data := await loop.sock_recv(source, self._step(up)):
            if held:
                await asyncio.sleep(held)
                held = 0
            for part in self._parts(data, self._step(up)):
                if pair.vanished:
                    break
                await self._flowing.wait()
                if self.conditions.delay:
                    await asyncio.sleep(self.conditions.delay)
                left = pair.left
                if left is not None and len(part) >= left:
                    await loop.sock_sendall(target, part[:left])
                    self.faults += 1
                    return
                await loop.sock_sendall(target, part)
                if left is not None:
                    pair.left = left - len(part)
                rate = self._rate(up)
                await asyncio.sleep(len(part) / rate if rate else 0)
        if pair.vanished:  # the end of the stream is delayed too
            await asyncio.Event().wait()

    def _rate(self, up: bool) -> float | None:
        return self.conditions.uplink if up and self.conditions.uplink is not None else self.conditions.rate

    def _step(self, up: bool) -> int:
        rate = self._rate(up)
        return _CHUNK if rate is None else max(1, int(rate / _SHARES))

    def _parts(self, data: bytes, step: int) -> list[bytes]:
        slices = self.conditions.slices
        if slices is None:
            return [data[at : at + step] for at in range(0, len(data), step)]
        parts = []
        while data:
            n = self._rng.randint(1, slices)
            parts.append(data[:n])
            data = data[n:]
        return parts

    def _end_soon(self, pair: _Pair) -> None:
        if pair in self._pairs:
            ending = asyncio.create_task(self._end(pair, reset=False), name="proxy end")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, pair: _Pair, *, reset: bool) -> None:
        if pair in self._pairs:
            self._pairs.discard(pair)
            for task in pair.tasks:
                task.cancel()
            await asyncio.wait(pair.tasks)
            pair.close(reset=reset)


def port_of(backend: Backend) -> int:
    return int(
        next(value for name, value in backend.env.items() if name.endswith(("PORT", "SERVERS"))).rpartition(":")[2]
    )


def through(proxy: FaultProxy, backend: Backend) -> Backend:
    """Return the settings of the broker with the address of the proxy."""
    port = str(port_of(backend))
    return Backend(backend.name, {name: value.replace(port, str(proxy.port)) for name, value in backend.env.items()})
