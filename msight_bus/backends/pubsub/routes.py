"""Routes: the topics and patterns of subscriptions, as a connection delivers to them."""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.backends.base import Inbox, Selection, TopicStream
from msight_bus.errors import BusError, TopicError
from msight_bus.message import Message
from msight_bus.patterns import TopicPattern
from msight_bus.topics import check_topic


class Route:
    """One topic of one subscription. Stays the same when the subscription is resubscribed on another connection.

    Attributes:
        topic: the topic's name on the broker; of a `PatternRoute`, the pattern.
        name: the topic's name in this program, for `Message.topic`.
        group_id: queue group; ``None``: every message is received.
        stream: receives the messages.
        on_refused: called when the broker revokes the permission to subscribe.
        subscription: number of the subscription, which its routes share.
        inbox: the inbox that ``stream`` belongs to; ``None`` for an internal subscription.
        ordered: whether the subscription can have more than one topic, so that the order of their messages matters.
    """

    __slots__ = ("group_id", "inbox", "name", "on_refused", "ordered", "stream", "subscription", "topic")

    def __init__(
        self,
        topic: str,
        group_id: str | None,
        stream: TopicStream,
        on_refused: Callable[[BusError], None],
        *,
        subscription: int = 0,
        name: str | None = None,
        inbox: Inbox | None = None,
        ordered: bool = False,
    ) -> None:
        self.topic = topic
        self.name = name or topic
        self.group_id = group_id
        self.stream = stream
        self.on_refused = on_refused
        self.subscription = subscription
        self.inbox = inbox
        self.ordered = ordered


class PatternRoute(Route):
    """One pattern of one subscription. The first message on a topic makes the route of that topic.

    ``stream`` receives the messages whose channel is not a valid topic, and counts them.

    Attributes:
        most: maximum number of topics whose routes are kept.
        routes: the routes by topic, the oldest first.
    """

    __slots__ = ("_inbox", "_pattern", "_selection", "most", "routes")

    def __init__(  # noqa: PLR0917 - one caller
        self,
        pattern: TopicPattern,
        selection: Selection,
        inbox: Inbox,
        on_refused: Callable[[BusError], None],
        subscription: int,
        most: int,
    ) -> None:
        super().__init__(
            pattern.text, selection.group_id, InvalidNames(inbox), on_refused, subscription=subscription, ordered=True
        )
        self.most = most
        self.routes: dict[str, Route] = {}
        self._pattern = pattern
        self._selection = selection
        self._inbox = inbox

    def takes(self, name: str) -> bool:
        """Return whether messages on a channel belong to this pattern, not to another entry of the subscription."""
        return self._selection.owner(name) is self._pattern and name not in self._selection.mapped

    def route_of(self, name: str) -> Route | None:
        """Return the route that receives this pattern's messages on a channel: this route if the channel is not a valid topic.

        ``None`` if no message of the channel is delivered. The channel is then a reserved topic, a dead-letter topic, a channel
        that matches only the broker's form of the pattern, or a topic of another entry, which receives its own copy.
        """
        route = self.routes.get(name)
        if route is not None:
            return route
        if not self.takes(name):
            return None
        try:
            check_topic(name)
        except TopicError:
            return self
        if len(self.routes) >= self.most:
            del self.routes[next(iter(self.routes))]
        stream, inbox = self._inbox.stream(name), self._inbox
        route = self.routes[name] = Route(
            name, self.group_id, stream, self.on_refused, subscription=self.subscription, inbox=inbox
        )
        return route


class UncountedStream:
    """The base class of receivers of messages whose sequences are not tracked (backends.base.TopicStream)."""

    def observe(self, batch: list[Message]) -> None:
        """Do nothing."""

    def follows(self, session: int, sequence: int, received_at: float) -> bool:
        """Return ``False``."""
        return False

    def announced(self, session: int, highest: int) -> None:
        """Do nothing."""

    def silence(self, within: float) -> float:
        """Return 0.0."""
        return 0.0

    def gap(self, missing: int | None, cause: str, *, at_most: bool = False) -> None:
        """Do nothing."""


class InvalidNames(UncountedStream):
    """The receiver of messages whose channel is not a valid topic."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def deliver(self, batch: list[Message]) -> None:
        """Count the messages."""
        self._inbox.invalid(len(batch))
