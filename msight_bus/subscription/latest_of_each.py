"""`LatestOfEach`: queued messages of many topics, of which the oldest of each topic can be removed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any

from msight_bus.message import Message


class LatestOfEach:
    """Messages in order of arrival, at most ``limit`` of each topic; has the methods of a ``deque`` that a queue uses.

    With one limit for all topics, messages of fast topics would displace those of slow topics.
    """

    __slots__ = ("_first", "_last", "_limit", "_messages", "_places")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: OrderedDict[int, Message[Any]] = OrderedDict()  # by place
        self._places: dict[str, deque[int]] = {}  # by topic
        self._first = 0
        self._last = 0

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message[Any]]:
        return iter(self._messages.values())

    def append(self, message: Message[Any]) -> None:
        """Add a message at the end."""
        self._last += 1
        self._messages[self._last] = message
        places = self._places.get(message.topic)
        if places is None:
            places = self._places[message.topic] = deque()
        places.append(self._last)

    def extend(self, messages: Iterable[Message[Any]]) -> None:
        """Add messages at the end."""
        for message in messages:
            self.append(message)

    def appendleft(self, message: Message[Any]) -> None:
        """Add a message at the beginning."""
        self._first -= 1
        self._messages[self._first] = message
        self._messages.move_to_end(self._first, last=False)
        self._places.setdefault(message.topic, deque()).appendleft(self._first)

    def popleft(self) -> Message[Any]:
        """Remove and return the first message.

        Raises:
            KeyError: there is no message.
        """
        message = self._messages.popitem(last=False)[1]
        self._forget_first(message.topic)
        return message

    def clear(self) -> None:
        """Remove all messages."""
        self._messages.clear()
        self._places.clear()

    def pop_surplus(self, topic: str) -> Message[Any] | None:
        """Remove and return the oldest message of a topic with more than ``limit`` messages; ``None`` if it has fewer."""
        places = self._places.get(topic)
        if places is None or len(places) <= self._limit:
            return None
        message = self._messages.pop(places[0])
        self._forget_first(topic)
        return message

    def _forget_first(self, topic: str) -> None:
        places = self._places[topic]
        places.popleft()
        if not places:
            del self._places[topic]
