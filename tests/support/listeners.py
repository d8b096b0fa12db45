"""Listeners that forward to a broker or replace a broker; they count connections and record the received bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Recorder:
    """The record of a listener.

    Attributes:
        port: port on loopback.
        connections: number of accepted connections.
        received: received bytes, one buffer per connection.
        target: port to which connections are forwarded; can be changed at runtime.
    """

    def __init__(self, target: int = 0) -> None:
        self.port = 0
        self.target = target
        self.received: list[bytearray] = []
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def connections(self) -> int:
        return len(self.received)

    @property
    def bytes(self) -> bytes:
        return b"".join(self.received)

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._open:
            writer.transport.abort()

    def _keep(self, writer: asyncio.StreamWriter) -> bytearray:
        self._open.add(writer)
        self.received.append(bytearray())
        return self.received[-1]

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection to the target."""
        seen = self._keep(writer)
        there, onwards = await asyncio.open_connection("127.0.0.1", self.target)
        self._open.add(onwards)
        await asyncio.gather(_pump(reader, onwards, seen), _pump(there, writer, None))

    def record(self, serve: Serve) -> Serve:
        """Call ``serve`` with a reader whose bytes are recorded."""

        async def serve_recorded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen = self._keep(writer)
            copy = asyncio.StreamReader(limit=1 << 24)
            copying = asyncio.create_task(_copy(reader, copy, seen))
            try:
                await serve(copy, writer)
                await writer.drain()
                writer.close()
            finally:
                copying.cancel()
                await asyncio.wait((copying,))

        return serve_recorded


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray | None) -> None:
    try:
        while data := await reader.read(65536):
            if seen is not None:
                seen += data
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _copy(reader: asyncio.StreamReader, copy: asyncio.StreamReader, seen: bytearray) -> None:
    try:
        while data := await reader.read(65536):
            seen += data
            copy.feed_data(data)
    except OSError:
        pass
    copy.feed_eof()


@asynccontextmanager
async def _listening(recorder: Recorder, serve: Serve, port: int = 0) -> AsyncIterator[Recorder]:
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(_shielded(serve, reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    recorder.port = server.sockets[0].getsockname()[1]
    try:
        yield recorder
    finally:
        server.close()
        recorder.cut()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _shielded(serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await serve(reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        pass  # the bus has closed the connection
    finally:
        writer.transport.abort()


@asynccontextmanager
async def proxy(target: int, port: int = 0) -> AsyncIterator[Recorder]:
    """Yield a listener that forwards every connection to ``target``."""
    recorder = Recorder(target)
    async with _listening(recorder, recorder.forward, port):
        yield recorder


@asynccontextmanager
async def fake(serve: Serve) -> AsyncIterator[Recorder]:
    """Yield a listener that serves connections with ``serve`` instead of a broker."""
    recorder = Recorder()
    async with _listening(recorder, recorder.record(serve)):
        yield recorder
