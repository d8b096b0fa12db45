"""Libraries without a broker: pyzmq and zenoh. The publisher connects to the subscriber by TCP on the loopback interface.

They keep nothing for a disconnected subscriber, and each pair of programs has its own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

from msight_bus.bench.sides import Tally, Target

_READY_WITHIN = 10.0
_POLL = 0.02


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _note(target: Target) -> Path:
    return Path(tempfile.gettempdir()) / f"msight-bench-{target.topic}.port"


async def _port(target: Target) -> int:
    """Return the port on which the subscriber listens."""
    async with asyncio.timeout(_READY_WITHIN):
        while not _note(target).exists():
            await asyncio.sleep(_POLL)
    return int(_note(target).read_text())


class ZmqSubscriber:
    """A SUB socket of ``zmq.asyncio``: ``await socket.recv()``."""

    async def open(self, target: Target) -> None:
        """Listen."""
        import zmq.asyncio  # noqa: PLC0415 - may not be installed

        self._note = _note(target)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._note.write_text(str(self._socket.bind_to_random_port("tcp://127.0.0.1")))
        self._first = self._socket.recv()  # the socket sends its subscription while it is used only

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe, recv = tally.observe, self._socket.recv
        waiting = self._first
        while True:
            payload = await waiting
            waiting = recv()
            tally.received += 1
            tally.size += len(payload)
            if observe is not None:
                observe(payload)

    async def close(self) -> None:
        """Close the socket."""
        self._note.unlink(missing_ok=True)
        self._context.destroy(linger=0)


class ZmqPublisher:
    """An XPUB socket of ``zmq.asyncio``, which reports when the subscriber is connected."""

    async def open(self, target: Target) -> None:
        """Connect, and wait for the subscription."""
        import zmq.asyncio  # noqa: PLC0415 - may not be installed

        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.connect(f"tcp://127.0.0.1:{await _port(target)}")
        await asyncio.wait_for(self._socket.recv(), _READY_WITHIN)

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        await self._socket.send(payload)

    async def flush(self) -> None:
        """Do nothing: the library does not confirm."""

    async def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


def _session(zenoh: Any, **endpoints: str) -> Any:
    config = zenoh.Config()
    config.insert_json5("scouting/multicast/enabled", "false")
    for kind, endpoint in endpoints.items():
        config.insert_json5(f"{kind}/endpoints", json.dumps([endpoint]))
    return zenoh.open(config)


class ZenohSubscriber:
    """A callback of zenoh's thread, passed to the event loop."""

    async def open(self, target: Target) -> None:
        """Listen."""
        import zenoh  # noqa: PLC0415 - may not be installed

        port = _free_port()
        loop, self._payloads = asyncio.get_running_loop(), asyncio.Queue[bytes]()
        self._note = _note(target)
        self._session = await asyncio.to_thread(_session, zenoh, listen=f"tcp/127.0.0.1:{port}")
        put = self._payloads.put_nowait
        self._session.declare_subscriber(
            target.topic, lambda sample: loop.call_soon_threadsafe(put, sample.payload.to_bytes())
        )
        self._note.write_text(str(port))

    async def receive(self, tally: Tally) -> None:
        """Count each message."""
        observe, get = tally.observe, self._payloads.get
        while True:
            payload = await get()
            tally.received += 1
            tally.size += len(payload)
            if observe is not None:
                observe(payload)

    async def close(self) -> None:
        """Close the session."""
        self._note.unlink(missing_ok=True)
        await asyncio.to_thread(self._session.close)


class ZenohPublisher:
    """``publisher.put()``, which does not wait."""

    async def open(self, target: Target) -> None:
        """Connect, and wait for the subscriber."""
        import zenoh  # noqa: PLC0415 - may not be installed

        self._session = await asyncio.to_thread(_session, zenoh, connect=f"tcp/127.0.0.1:{await _port(target)}")
        self._publisher = self._session.declare_publisher(target.topic)
        async with asyncio.timeout(_READY_WITHIN):
            while not self._publisher.matching_status.matching:
                await asyncio.sleep(_POLL)

    async def send(self, payload: bytes) -> None:
        """Send one message."""
        self._publisher.put(payload)

    async def flush(self) -> None:
        """Do nothing: the library does not confirm."""

    async def close(self) -> None:
        """Close the session."""
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self._session.close)
