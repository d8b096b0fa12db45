"""A connection to one broker: aiokafka writes requests and authenticates; this module reads the socket."""

from __future__ import annotations

import asyncio
import struct
import time
import weakref
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator

from msight_bus.backends.kafka.aiokafka_compat.requests import FetchRequest, read_fetch


class _OAuth(OAuthAuthenticator):
    """Answers a server challenge, which carries a refusal and which aiokafka treats as success (RFC 7628, 3.2.2 and 3.2.3)."""

    async def step(self, payload: bytes | None) -> tuple[bytes | str, bool] | None:
        return (b"\x01", True) if payload else await super().step(payload)


_SCRATCH_BYTES = 64 * 1024
_MOST_SCRATCH_BYTES = 256 * 1024
"""Bytes of the scratch buffer after the first frame of more than `_SCRATCH_BYTES` that fits, so that one read can receive it."""

_FRAME_BYTES = 4 * 1024 * 1024
"""Bytes first allocated for a large frame, doubled as data arrives: a peer of another protocol can announce any size."""

_SIZE = struct.Struct(">i")


class _Frames(asyncio.BufferedProtocol):
    """Splits the received bytes into frames, large ones in a buffer of their own; aiokafka's stream copies each four times."""

    def __init__(self, connection: Connection, closed: asyncio.Future[None]) -> None:
        self._connection = connection
        self._closed = closed
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._filled = 0
        self._frame: bytearray | None = None  # a frame larger than the scratch buffer, as far as received
        self._size = 0  # bytes of that frame
        self._is_at_eof = False

    def at_eof(self) -> bool:
        """Return whether the connection has ended."""
        return self._is_at_eof

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer for the next bytes."""
        return memoryview(self._scratch if self._frame is None else self._frame)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        """Pass complete frames to the connection; close it if one cannot be parsed."""
        self._filled += count
        try:
            if self._frame is None:
                self._take_from_scratch()
            elif self._filled == self._size:
                frame, self._frame, self._filled = self._frame, None, 0
                self._connection.take(frame)
            elif self._filled == len(self._frame):
                grown = bytearray(min(self._size, 2 * self._filled))
                grown[: self._filled] = self._frame
                self._frame = grown
        except Exception as error:  # a parser can raise anything for invalid bytes
            self._connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)

    def _take_from_scratch(self) -> None:
        view, at = memoryview(self._scratch), 0
        while self._filled - at >= _SIZE.size:
            (size,) = _SIZE.unpack_from(view, at)
            if size < 0:
                raise ValueError(f"the size of a response is negative: {size}")
            start, end = at + _SIZE.size, at + _SIZE.size + size
            if end > self._filled:
                if len(self._scratch) < _SIZE.size + size <= _MOST_SCRATCH_BYTES:
                    self._scratch = bytearray(_MOST_SCRATCH_BYTES)
                if _SIZE.size + size <= len(self._scratch):
                    break
                self._size = size
                self._frame = bytearray(min(size, _FRAME_BYTES))
                self._frame[: self._filled - start] = view[start : self._filled]
                self._filled -= start
                return
            self._connection.take(view[start:end].tobytes())
            at = end
        memoryview(self._scratch)[: self._filled - at] = view[at : self._filled]
        self._filled -= at

    def eof_received(self) -> None:
        """Note that the broker has closed the connection."""
        self._is_at_eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the connection."""
        self._is_at_eof = True
        self._connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=exc)
        if not self._closed.done():
            self._closed.set_result(None)


class Connection(AIOKafkaConnection):
    """A connection to one broker."""

    _fetch_timer: asyncio.TimerHandle | None = None

    async def connect(self) -> None:
        """Connect and authenticate.

        Raises:
            OSError: the broker cannot be reached.
            TimeoutError: the broker did not accept the connection within the request timeout.
            KafkaError: the broker refused.
        """
        loop = self._loop
        self._closed_fut = loop.create_future()
        frames = _Frames(self, self._closed_fut)
        ssl = self._ssl_context if self._security_protocol in ("SSL", "SASL_SSL") else None
        name = self.host.rstrip(".") if ssl else None  # names in certificates have no trailing dot
        async with asyncio.timeout(self._request_timeout):
            transport, _ = await loop.create_connection(
                lambda: frames, self.host, self.port, ssl=ssl, server_hostname=name
            )
        self._reader, self._writer = frames, asyncio.StreamWriter(transport, frames, None, loop)
        self._read_task = loop.create_future()  # aiokafka expects a reader task; there is none
        self._read_task.set_result(None)
        if self._max_idle_ms is not None:
            self._idle_handle = loop.call_soon(self._idle_check, weakref.ref(self))
        try:
            await self._do_version_lookup()
            if self._security_protocol in ("SASL_SSL", "SASL_PLAINTEXT"):
                await self._do_sasl_handshake()
        except BaseException:
            self.close()
            raise

    def take(self, frame: bytes | bytearray) -> None:
        """Set the result of the oldest request from its response.

        Raises:
            Exception: the response cannot be parsed.
        """
        expected, request, answer = self._requests[0]
        if not isinstance(request, FetchRequest):
            self._handle_frame(bytes(frame))
            return
        (got,) = _SIZE.unpack_from(frame)
        if got != expected:
            raise kafka_errors.CorrelationIdError(f"the response to request {expected} has the id {got}")
        # Decode before removing the request: on an error, closing the connection then fails the request too.
        fetched = read_fetch(memoryview(frame)[_SIZE.size :], request.version)
        self._requests.popleft()
        self._last_action = time.monotonic()
        if not answer.done():
            answer.set_result(fetched)

    def authenticator_oauth(self) -> _OAuth:
        return _OAuth(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Write a request and return its response as an awaitable.

        Raises:
            IncompatibleBrokerVersion: the broker supports no version of the request.
            KafkaConnectionError: the connection is closed. On uvloop, aiokafka raises RuntimeError where it has just closed.
        """
        try:
            return super().send(request, expect_response)
        except kafka_errors.KafkaError:  # also a RuntimeError
            raise
        except NotImplementedError as error:  # also a RuntimeError
            raise kafka_errors.IncompatibleBrokerVersion(str(error)) from error
        except RuntimeError as error:
            raise kafka_errors.KafkaConnectionError("The connection was closed.") from error

    def write(self, request: Any) -> asyncio.Future[Any]:
        """Write a request and return the future of its response. Without one within the request timeout, abort the connection.

        Raises:
            KafkaConnectionError: the connection is closed.
        """
        if isinstance(request, FetchRequest):
            return self._write_fetch(request)
        self.send(request).close()  # the coroutine that would wait for the response
        answer: asyncio.Future[Any] = self._requests[-1][2]
        timer = self._loop.call_later(self._request_timeout, self._time_out, answer)
        answer.add_done_callback(lambda _: timer.cancel())
        return answer

    def _write_fetch(self, request: FetchRequest) -> asyncio.Future[Any]:
        if self._writer is None:
            raise kafka_errors.KafkaConnectionError("The connection was closed.")
        number = self._next_correlation_id()
        data = request.encode(self._versions, number, self._client_id.encode())
        try:
            self._writer.write(_SIZE.pack(len(data)) + data)
        except (OSError, RuntimeError) as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise kafka_errors.KafkaConnectionError("The connection was closed.") from error
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._requests.append((number, request, answer))
        request.deadline = self._loop.time() + self._request_timeout
        if self._fetch_timer is None:
            self._fetch_timer = self._loop.call_at(request.deadline, self._check_fetch)
        return answer

    def _check_fetch(self) -> None:
        """Abort the connection if the oldest fetch is past its deadline. All fetches share one timer, set once a timeout."""
        self._fetch_timer = None
        for _, request, answer in self._requests:
            if isinstance(request, FetchRequest):
                if request.deadline <= self._loop.time():
                    self._time_out(answer)
                else:
                    self._fetch_timer = self._loop.call_at(request.deadline, self._check_fetch)
                return

    def _time_out(self, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            answer.set_exception(kafka_errors.RequestTimedOutError(f"no response within {self._request_timeout:g} s"))
        self.abort()

    def abort(self) -> None:
        """Close the connection and discard what is not yet sent."""
        writer, self._on_close_cb = self._writer, None
        if self._fetch_timer is not None:
            self._fetch_timer.cancel()
        self.close(reason=CloseReason.CONNECTION_TIMEOUT)
        if writer is not None:
            writer.transport.abort()
