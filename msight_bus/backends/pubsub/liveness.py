"""Whether the broker at the other end of a connection is alive, on slow links too.

A question that lies behind megabytes on a slow uplink cannot be answered soon. Its deadline starts when the peer's TCP has
acknowledged it; until then the peer is alive while acknowledged bytes advance. That bytes leave our buffer would prove
nothing: the kernel takes some megabytes for a peer that never reads. Where the kernel does not tell (another system than Linux,
a Unix socket), the deadline starts at the question.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import Any, Protocol

from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.errors import BusError, ConnectionLostError
from msight_bus.settings import Limits

_LOOK_EVERY = 0.5
"""Seconds between two looks at what was acknowledged."""

_TCP_INFO_BYTES = 128
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
"""Where ``tcpi_bytes_acked`` is in ``struct tcp_info`` (linux/tcp.h, since Linux 4.1)."""


class Watched(Protocol):
    """A connection, as far as its liveness is concerned.

    Attributes:
        socket: what ``get_extra_info("socket")`` gives, which may be ``None``.
        gone: done once the connection is lost or closed.
        received_at: when the last bytes came, by the loop's clock, in seconds.
        reading_paused: what arrives is left where it is.
    """

    socket: Any
    gone: asyncio.Future[None]
    received_at: float
    reading_paused: bool

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were written and that the operating system does not have yet."""

    def ping(self) -> Request:
        """Ask for a sign of life."""

    def fail(self, error: BusError) -> None:
        """Give the connection up."""


async def watch(connection: Watched, limits: Limits) -> None:
    """Return when the connection is gone; give it up when the broker does not answer."""
    loop = asyncio.get_running_loop()
    interval = limits.ping_interval
    while not connection.gone.done():
        quiet = 0.0 if connection.reading_paused else loop.time() - connection.received_at
        await asyncio.wait((connection.gone,), timeout=max(0.0, interval - quiet))
        if connection.gone.done() or connection.reading_paused or loop.time() - connection.received_at < interval:
            continue
        if not await _answers(connection, limits.pong_timeout):
            connection.fail(
                ConnectionLostError(f"The broker did not answer for {loop.time() - connection.received_at:.3g} s.")
            )


async def _answers(connection: Watched, patience: float) -> bool:
    """Whether there is a sign of life within ``patience`` seconds of when the broker can have had the question."""
    loop = asyncio.get_running_loop()
    asked = moved_at = loop.time()
    progress = Progress(connection.socket)
    request = connection.ping()
    end = progress.end_of(connection.unsent_bytes)
    acknowledged = progress.acknowledged
    while True:
        left = moved_at + patience - loop.time()
        timeout = left if end is None else min(left, _LOOK_EVERY)
        await asyncio.wait(
            (request.answer, connection.gone), timeout=max(0.0, timeout), return_when=asyncio.FIRST_COMPLETED
        )
        if request.answer.done() or connection.gone.done() or connection.reading_paused:
            return True
        if connection.received_at >= asked:
            return True
        if end is not None:
            before, acknowledged = acknowledged, progress.acknowledged
            if acknowledged is None or acknowledged >= end:
                end = None  # the question is there
                moved_at = loop.time()
            elif before is not None and acknowledged > before:
                moved_at = loop.time()
        if loop.time() - moved_at >= patience:
            return False


class Progress:
    """What the peer's TCP has acknowledged of a connection."""

    def __init__(self, sock: Any) -> None:
        """``sock`` is what ``get_extra_info("socket")`` gives, which may be ``None``."""
        family = getattr(sock, "family", None)
        is_tcp = family in (socket.AF_INET, socket.AF_INET6)
        self._socket = sock if is_tcp and sys.platform == "linux" else None

    @property
    def acknowledged(self) -> int | None:
        """Bytes so far; ``None`` where the system does not tell."""
        if self._socket is None:
            return None
        with contextlib.suppress(OSError, struct.error):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0])
        return None

    def end_of(self, unsent: int) -> int | None:
        """What `acknowledged` will be when the peer has all that was written: ``unsent`` bytes are not the kernel's yet."""
        acknowledged = self.acknowledged
        if acknowledged is None or self._socket is None:
            return None
        try:
            queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        except (OSError, ValueError):
            return None
        return acknowledged + int(struct.unpack("i", queued)[0]) + unsent
