"""Hand subscriptions over from a server that announced its shutdown (lame duck mode) to another server, without a gap.

For a moment both servers deliver. Messages from the old server are delivered and recorded. Messages from the new server are
buffered until the old server has delivered everything, then delivered without those that were recorded. Messages of foreign
publishers have no sequence and can be delivered twice.
"""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.backends.pubsub.connection import Connection
from msight_bus.backends.pubsub.routes import Route
from msight_bus.message import Message

_HELD_MESSAGES = 10_000
"""Beyond this number, reading from the new connection is paused until the hand-over is done."""

_REMEMBERED = 1_000_000
"""Maximum number of messages recorded; later ones can be delivered twice."""

_COPIES_WITHIN = 2.0
"""Seconds."""

_Key = tuple[str, int | None, int | None]


def _key(message: Message) -> _Key:
    return message.topic, message.session, message.sequence


def _deliver_unseen(route: Route, batch: list[Message], seen: set[_Key]) -> None:
    if unseen := [message for message in batch if _key(message) not in seen]:
        route.stream.deliver(unseen)


class DeliveryRecorder:
    """An interceptor that delivers and records the messages of the old connection.

    Attributes:
        seen: topic, session and sequence of each message delivered.
    """

    def __init__(self) -> None:
        self.seen: set[_Key] = set()

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Deliver and record messages."""
        if len(self.seen) < _REMEMBERED:
            self.seen.update([_key(message) for message in batch if message.session is not None])
        route.stream.deliver(batch)


class DeliveryBuffer:
    """An interceptor that buffers the messages of the new connection."""

    def __init__(self, on_full: Callable[[], None]) -> None:
        """
        Args:
            on_full: called when the buffer is full.
        """
        self._on_full = on_full
        self._held: list[tuple[Route, list[Message]]] = []
        self._count = 0

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Buffer messages."""
        self._held.append((route, batch))
        self._count += len(batch)
        if self._count >= _HELD_MESSAGES:
            self._on_full()

    def deliver_except(self, seen: set[_Key]) -> None:
        """Deliver the buffered messages that are not in ``seen``."""
        for route, batch in self._held:
            _deliver_unseen(route, batch, seen)
        self._held.clear()


class CopyFilter:
    """An interceptor that drops duplicates: other servers can pass messages to the new server after the old one."""

    def __init__(self, seen: set[_Key], connection: Connection) -> None:
        """
        Args:
            seen: topic, session and sequence of the messages that were delivered before.
            connection: the connection to filter; its `interceptor` is removed after `_COPIES_WITHIN` seconds.
        """
        self._seen = seen
        self._connection = connection
        connection.loop.call_later(_COPIES_WITHIN, self._end)

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Deliver the messages that were not delivered before."""
        _deliver_unseen(route, batch, self._seen)

    def _end(self) -> None:
        if self._connection.interceptor is self:
            self._connection.interceptor = None
