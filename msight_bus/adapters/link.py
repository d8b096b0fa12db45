"""One open connection to a live broker (Redis, NATS), from the moment its client library has opened it.

The client did what is hard: name resolution, TLS, authentication. From then on the bytes are ours: what arrives is
parsed where it arrives, and what is written in one tick of the loop leaves in one system call. A link lives once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msight_bus.adapters.in_flight import InFlight
from msight_bus.errors import BusError, ConnectionLostError

BURST_BYTES = 128 * 1024
"""Written at once, and after which a publisher that never had to wait gives the loop a turn."""

_JOIN_BELOW_MEAN = 4096
"""Where parts are smaller on average, joining them costs less than handing them over one by one."""


class Link(asyncio.Protocol):
    """Takes over the transport of a connected client.

    Attributes:
        congested: a publisher has to await `drained` before it writes more.
        in_flight: what was written and is not confirmed.
        gone: done once the connection is lost or closed.
        out, out_bytes: what this tick writes; protocols with a hot path add to it themselves, as `write` does.
        received_at: when the last bytes came, by the loop's clock, in seconds.
    """

    def __init__(self, transport: Any, on_lost: Callable[[Link, BusError], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: Any = transport
        self.congested = False
        self.in_flight = InFlight()
        self.received_at = self.loop.time()
        self.reading_paused = False
        self._on_lost = on_lost
        self.idle = True  # nothing was written in this tick
        self.out: list[bytes] = []
        self.out_bytes = 0
        self._write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._reason: BusError | None = None

    def take_over(self, leftover: bytes) -> None:
        """Become the transport's protocol; ``leftover`` is what the client had read and not parsed."""
        if self.transport.is_closing():
            raise ConnectionLostError("The broker closed the connection as soon as it was open.")
        self.transport.set_protocol(self)
        self.transport.resume_reading()  # the client's reader may have paused it
        if leftover:
            self.data_received(leftover)

    # -- writing

    def write(self, *parts: bytes) -> None:
        """Write with the others of this tick."""
        if self.idle:
            self.write_first(parts)
        else:
            self.out += parts
        self.out_bytes += sum([len(part) for part in parts])
        if self.out_bytes >= BURST_BYTES:
            self.burst()

    def write_first(self, parts: tuple[bytes, ...]) -> None:
        """What comes first in a tick leaves at once, for a stream of single messages has nothing to wait for."""
        self.idle = False
        self.loop.call_soon(self._tick)
        if not self.transport.is_closing():
            self.transport.writelines(parts)

    def burst(self) -> None:
        """So much was written in this tick that it leaves at once, and the loop gets a turn before there is more."""
        self._send()
        self.congested = True
        self.loop.call_soon(self._tick)

    def _send(self) -> None:
        out, self.out = self.out, []
        if out and not self.transport.is_closing():
            if self.out_bytes > _JOIN_BELOW_MEAN * len(out):
                self.transport.writelines(out)  # large payloads are not copied
            else:
                self.transport.write(b"".join(out))
        self.out_bytes = 0

    def _tick(self) -> None:
        self._send()
        self.idle = True
        if not self._write_paused:
            self._release()

    def pause_writing(self) -> None:
        """The transport's buffer is over its high-water mark."""
        self._write_paused = True
        self.congested = True

    def resume_writing(self) -> None:
        """The transport's buffer is under its low-water mark."""
        self._write_paused = False
        self._release()

    def _release(self) -> None:
        self.congested = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    async def drained(self) -> None:
        """Wait until there is room to write, or the link is gone."""
        while self.congested and not self.gone.done():
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    # -- reading

    def data_received(self, data: bytes) -> None:
        """Parse a chunk."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """The broker closes the connection."""
        return False

    def pause_reading(self) -> None:
        """Leave what arrives in the socket; the broker notices after a while."""
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.received_at = self.loop.time()
            self.transport.resume_reading()

    # -- round trips and the end

    def ping(self) -> asyncio.Future[None]:
        """Ask for a sign of life; done when the broker has processed all that was written before."""
        raise NotImplementedError

    def fail(self, error: BusError) -> None:
        """Give the link up for ``error``."""
        if self._reason is None:
            self._reason = error
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, for whatever reason."""
        if self.gone.done():
            return
        self.gone.set_result(None)
        reason = self._reason
        if reason is None:
            reason = ConnectionLostError(f"The broker closed the connection{f': {error}' if error else ''}.")
            reason.__cause__ = error
        self.out = []
        self._release()
        self._on_lost(self, reason)

    async def close(self, within: float) -> None:
        """Write what is left and close; whatever is not gone after ``within`` seconds is cut."""
        if not self.gone.done():
            self._send()
            self.transport.close()
            await asyncio.wait((self.gone,), timeout=within)
            if not self.gone.done():
                self.transport.abort()
                await asyncio.wait((self.gone,), timeout=1.0)
