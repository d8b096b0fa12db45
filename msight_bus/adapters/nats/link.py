"""The NATS client protocol on a connection that nats-py has opened.

Source: the NATS client protocol reference. PONG answers PING in order, so it confirms all that was written before the PING.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from binascii import hexlify
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.failover import Meaning
from msight_bus.adapters.link import BURST_BYTES, Link
from msight_bus.adapters.live import Connection, LiveFeed
from msight_bus.adapters.nats.errors import meaning_of, refused_subject
from msight_bus.adapters.receiving import ReceivingLink
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError, MessageTooLargeError, quoted
from msight_bus.message import Message
from msight_bus.wire import envelope
from msight_bus.wire.nats import NatsParser, ProtocolError, parse_headers

logger = logging.getLogger("msight_bus")

_NO_HEAD = ((-1, -1), b"")
_PING_EVERY = 8192
"""Messages between two round trips of a stream that nobody flushes: bounds what is remembered as unconfirmed."""

_FIXED_BYTES = len(b"NATS/1.0\r\nmsight: ") + 48 + len(b"\r\n\r\n")
_EMPTY_KEY = '""'

_pack = struct.Struct(">QQ").pack
"""Sequence and publish time in nanoseconds: as bytes."""


class NatsLink(ReceivingLink[bytes]):
    """Publishes and subscribes."""

    def __init__(
        self,
        transport: Any,
        owner: Connection,
        on_lost: Callable[[Link, BusError], None],
        stamp: Stamp,
        *,
        max_payload: int,
        on_info: Callable[[Mapping[str, Any]], None],
    ) -> None:
        super().__init__(transport, on_lost, NatsParser())
        self._owner = owner
        self._stamp = stamp
        self._max_payload = max_payload
        self._on_info = on_info
        self._heads: dict[
            str, tuple[tuple[int, int], bytes]
        ] = {}  # by topic: the last sizes, and the command up to them
        self._unconfirmed: dict[bytes, BusError | None] = {}  # by sid, with the refusal if there was one
        self._last_sid = 0
        self._next_ping = _PING_EVERY

    def publish(self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Write one HPUB.

        Raises:
            MessageTooLargeError: with its headers it is over the server's max_payload, which would cut the connection.
        """
        more = b"" if key is None and not headers else _more_headers(headers)
        suffix = b"" if key is None else b" " + _pack_key(key).encode()
        header_size = _FIXED_BYTES + len(suffix) + len(more)
        size = header_size + len(payload)
        if size > self._max_payload:
            raise MessageTooLargeError(
                f"The message takes {size} bytes with its headers and NATS takes {self._max_payload} "
                "(max_payload of the server, or MSIGHT_MAX_MESSAGE_BYTES).",
                size=size,
                limit=self._max_payload,
            )
        head_size, head = self._heads.get(topic, _NO_HEAD)
        if head_size != (header_size, size):
            start = b"HPUB %b %d %d\r\nNATS/1.0\r\nmsight: %016x"
            head = start % (topic.encode(), header_size, size, self._stamp.session)
            self._heads[topic] = (header_size, size), head
        stamp = self._stamp
        sequence = stamp.last[topic] = stamp.last.get(topic, 0) + 1
        digits = hexlify(_pack(sequence, time.time_ns()))  # half the time of "%016x%016x"
        end = suffix + b"\r\n" + more + b"\r\n" if suffix or more else b"\r\n\r\n"
        parts = head, digits, end, payload, b"\r\n"
        if self.idle:
            self.write_first(parts)
        else:
            self.out += parts
        self.out_bytes += size + 64
        in_flight = self.in_flight
        in_flight.wrote(topic)
        if self.out_bytes >= BURST_BYTES:
            self.burst()
        if in_flight.written >= self._next_ping:
            self.ping()

    def ping(self) -> asyncio.Future[None]:
        """PING behind everything written before it."""
        answer: asyncio.Future[None] = self.loop.create_future()
        if self.gone.done():
            answer.set_exception(ConnectionLostError("The connection was lost."))
            answer.exception()
            return answer
        self._next_ping = self.in_flight.written + _PING_EVERY
        self.in_flight.asked(answer)
        self.write(b"PING\r\n")
        return answer

    def add(self, feed: LiveFeed) -> asyncio.Future[None]:
        """SUB, confirmed by a round trip; a refusal comes before the PONG."""
        self._last_sid += 1
        sid = b"%d" % self._last_sid
        self._feeds[sid] = [feed]
        self._unconfirmed[sid] = None
        group = b"" if feed.group_id is None else feed.group_id.encode() + b" "
        self.write(b"SUB %b %b%b\r\n" % (feed.topic.encode(), group, sid))
        return asyncio.ensure_future(self._confirmed(sid, self.ping()))

    async def _confirmed(self, sid: bytes, answer: asyncio.Future[None]) -> None:
        try:
            await answer
        finally:
            error = self._unconfirmed.pop(sid, None)
        if error is not None:
            self._feeds.pop(sid, None)
            raise error

    def remove(self, feed: LiveFeed) -> asyncio.Future[None]:
        """UNSUB and a round trip, behind which nothing comes."""
        sids = [sid for sid, known in self._feeds.items() if feed in known]
        for sid in sids:
            self.write(b"UNSUB %b\r\n" % sid)
        answer = self.ping()
        answer.add_done_callback(lambda _: [self._feeds.pop(sid, None) for sid in sids])
        return answer

    def _answered(self, reply: bytes) -> None:
        if reply == b"PONG":
            self.in_flight.confirm_to_answer()
        elif reply == b"PING":
            self.write(b"PONG\r\n")
        elif reply.startswith(b"INFO "):
            try:
                info = json.loads(reply[5:])
            except (ValueError, RecursionError):
                return
            if isinstance(info, dict):
                if isinstance(limit := info.get("max_payload"), int):
                    self._max_payload = min(self._max_payload, limit)
                self._on_info(info)
        elif reply.startswith(b"-ERR"):
            self._refuse(reply[4:].strip().strip(b"'").decode("utf-8", "replace"))
        elif reply not in (b"", b"+OK"):
            self.fail(ProtocolError("The peer does not speak NATS."))

    def _other(self, topic: str, metadata: bytes, payload: bytes, received_at: float) -> Message:
        if not metadata:
            return Message(topic, payload, received_at=received_at)
        return _from_headers(topic, parse_headers(metadata), payload, received_at)

    def _refuse(self, text: str) -> None:
        refusal = AuthenticationError(f"NATS refused: {quoted(text)}")
        meaning = meaning_of(text)
        subject = refused_subject(text)
        if subject is not None and subject.operation == "publish":
            self._owner.refuse(quoted(subject.subject), refusal)
        elif subject is not None:
            for sid, feeds in list(self._feeds.items()):
                if subject.sid == sid.decode() or (subject.sid is None and feeds[0].topic == subject.subject):
                    self._refuse_subscription(sid, refusal)
        elif meaning is Meaning.CREDENTIALS:
            self.fail(refusal)
        elif meaning is Meaning.PERMISSION:  # of no subject that is known; the connection stays
            logger.warning("NATS reports: %s", quoted(text))
        else:  # NATS closes the connection after any other error
            logger.warning("NATS reports: %s", quoted(text))
            self.fail(ConnectionLostError(f"NATS reports: {quoted(text)}"))

    def _refuse_subscription(self, sid: bytes, error: BusError) -> None:
        """A SUB is refused; or one that was confirmed ends, where a reload has taken the permission away."""
        if sid in self._unconfirmed:
            self._unconfirmed[sid] = error
            return
        for feed in self._feeds.pop(sid):
            if feed in self._owner.feeds:
                self._owner.feeds.remove(feed)
            feed.sink.fail(error)


def _pack_key(key: str) -> str:
    """A key as it travels behind the metadata; other clients strip spaces, so an empty one has a form of its own."""
    return quote(key, safe="") or _EMPTY_KEY


def _unpack_key(text: str) -> str:
    """The key that `_pack_key` packed."""
    return "" if text == _EMPTY_KEY else unquote(text)


def _more_headers(headers: Mapping[str, str] | None) -> bytes:
    return b"".join([b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in (headers or {}).items()])


def _from_headers(topic: str, headers: dict[str, str], payload: bytes, received_at: float) -> Message:
    """A message with ``headers``, of which one may be ours."""
    value, has_key, key = headers.pop(envelope.HEADER, "").partition(" ")
    meta = envelope.parse_header(value)
    session, sequence, published_at = meta if meta is not None else (None, None, None)
    return Message(
        topic, payload, headers, _unpack_key(key) if has_key else None, session, sequence, published_at, received_at
    )
