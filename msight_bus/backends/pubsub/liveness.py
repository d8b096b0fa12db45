"""Liveness of a connection: a PING where nothing arrives, with a deadline for the answer.

On a slow uplink, a PING behind megabytes of data is answered late. Therefore the deadline starts when the peer's TCP has
acknowledged the PING; before that, the peer is alive while the number of acknowledged bytes grows. Bytes that leave the write
buffer prove nothing: the kernel buffers megabytes for a peer that never reads. Where the kernel does not report acknowledged
bytes (systems other than Linux, Unix sockets), the deadline starts when the PING is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

from msight_bus.backends.pubsub.connection import Connection
from msight_bus.errors import ConnectionLostError
from msight_bus.settings import Limits

_LOOK_EVERY = 0.5
"""Seconds between two checks of the acknowledged bytes."""

_TCP_INFO_BYTES = 128
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
"""Offset of ``tcpi_bytes_acked`` in ``struct tcp_info`` (linux/tcp.h, since Linux 4.1)."""


async def watch(connection: Connection, limits: Limits) -> None:
    """Send a PING when nothing arrived for ``ping_interval``; abort the connection without an answer within ``pong_timeout``.

    Returns when the connection is gone. Data of any kind counts as an answer.
    """
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


async def _answers(connection: Connection, patience: float) -> bool:
    """Send a PING; return whether data arrived within ``patience`` seconds after the broker can have received the PING."""
    asked = asyncio.get_running_loop().time()
    return await answered(connection, connection.ping().answer, patience, lambda: connection.received_at >= asked)


async def answered(
    connection: Connection, answer: asyncio.Future[Any], patience: float, enough: Callable[[], bool] = lambda: False
) -> bool:
    """Wait for the answer to the command that was written last.

    Args:
        connection: the connection on which the command was written.
        answer: the future of the answer.
        patience: seconds from the time at which the broker can have received the command.
        enough: called at each wake-up; ``True`` ends the wait as an answer does.

    Returns:
        ``False`` if no answer arrived in time. ``True`` if an answer arrived, ``enough`` returned ``True``, the connection is
        lost or closed, or reading is paused.
    """
    loop = asyncio.get_running_loop()
    moved_at = loop.time()
    progress = Progress(connection.socket)
    end = progress.end_of(connection.unsent_bytes)
    acknowledged = progress.acknowledged
    while True:
        left = moved_at + patience - loop.time()
        timeout = left if end is None else min(left, _LOOK_EVERY)
        await asyncio.wait((answer, connection.gone), timeout=max(0.0, timeout), return_when=asyncio.FIRST_COMPLETED)
        if answer.done() or connection.gone.done() or connection.reading_paused or enough():
            return True
        if end is not None:
            before, acknowledged = acknowledged, progress.acknowledged
            if acknowledged is None or acknowledged >= end:
                end = None  # the peer has received the PING
                moved_at = loop.time()
            elif before is not None and acknowledged > before:
                moved_at = loop.time()
        if loop.time() - moved_at >= patience:
            return False


class Progress:
    """The number of bytes that the peer's TCP has acknowledged."""

    def __init__(self, sock: Any) -> None:
        """
        Args:
            sock: the transport's ``get_extra_info("socket")``; ``None``: progress is unknown.
        """
        family = getattr(sock, "family", None)
        is_tcp = family in (socket.AF_INET, socket.AF_INET6)
        self._socket = sock if is_tcp and sys.platform == "linux" else None

    @property
    def acknowledged(self) -> int | None:
        """Number of bytes acknowledged so far; ``None`` where the system does not report them."""
        if self._socket is None:
            return None
        with contextlib.suppress(OSError, struct.error):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0])
        return None

    def end_of(self, unsent: int) -> int | None:
        """Return the value of `acknowledged` once the peer has received everything written.

        Args:
            unsent: bytes not yet passed to the operating system.
        """
        acknowledged = self.acknowledged
        if acknowledged is None or self._socket is None:
            return None
        try:
            queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        except (OSError, ValueError):
            return None
        return acknowledged + int(struct.unpack("i", queued)[0]) + unsent
