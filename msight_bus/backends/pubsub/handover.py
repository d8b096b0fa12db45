"""Move a bus from a server that says that it will leave to another one, before it is cut.

For a moment both servers deliver. What the old one brings is handed out and remembered; what the new one brings is held until
the old one has brought all, and then handed out without what came already. Messages of other makes have no sequence, so
they may come twice.
"""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.backends.pubsub.connection import Connection, Route
from msight_bus.message import Message

_HELD_MESSAGES = 10_000
"""At more the new connection is not read until the old one has been left."""

_REMEMBERED = 1_000_000

_COPIES_WITHIN = 2.0
"""Seconds."""

_Key = tuple[str, int | None, int | None]


def _key(message: Message) -> _Key:
    return message.topic, message.session, message.sequence


class DeliveryRecorder:
    """Hands out what the old connection brings, and remembers it."""

    def __init__(self) -> None:
        self.seen: set[_Key] = set()

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Hand the messages out."""
        if len(self.seen) < _REMEMBERED:
            self.seen.update([_key(message) for message in batch if message.session is not None])
        route.stream.deliver(batch)


class DeliveryBuffer:
    """Holds what the new connection brings."""

    def __init__(self, on_full: Callable[[], None]) -> None:
        self._on_full = on_full
        self._held: list[tuple[Route, list[Message]]] = []
        self._count = 0

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Keep the messages for later."""
        self._held.append((route, batch))
        self._count += len(batch)
        if self._count >= _HELD_MESSAGES:
            self._on_full()

    def deliver_except(self, seen: set[_Key]) -> None:
        """Hand out what is held and not in ``seen``."""
        for route, batch in self._held:
            unseen = [message for message in batch if _key(message) not in seen]
            if unseen:
                route.stream.deliver(unseen)
        self._held.clear()


class CopyFilter:
    """Passes over what the old connection has brought already: copies reach the new server a moment later, over other routes."""

    def __init__(self, seen: set[_Key], connection: Connection) -> None:
        """It takes itself away from the connection in the end."""
        self._seen = seen
        self._connection = connection
        connection.loop.call_later(_COPIES_WITHIN, self._end)

    def deliver(self, route: Route, batch: list[Message]) -> None:
        """Hand out what is new."""
        unseen = [message for message in batch if _key(message) not in self._seen]
        if unseen:
            route.stream.deliver(unseen)

    def _end(self) -> None:
        if self._connection.interceptor is self:
            self._connection.interceptor = None
