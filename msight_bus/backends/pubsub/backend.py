"""`PubSubBackend`: publishes and subscribes on a broker without persistence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from msight_bus.backends.base import Inbox, Selection
from msight_bus.backends.pubsub.connection import Connector
from msight_bus.backends.pubsub.in_flight import Sender
from msight_bus.backends.pubsub.publishing import PublishedTopics, PubSubPublisher
from msight_bus.backends.pubsub.reconnecting import ReconnectingConnection
from msight_bus.backends.pubsub.routes import PatternRoute, Route
from msight_bus.backends.pubsub.tail_loss import AnnouncementSubscriber, SequenceAnnouncer
from msight_bus.capabilities import Capabilities
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ConnectionLostError,
    aborted,
    counted,
)
from msight_bus.events import BusEvent, Disconnected, Reconnected
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.settings import BusSettings, Limits
from msight_bus.tasks import Alarm, BackgroundTasks, reraise_swallowed, run_shielded
from msight_bus.topics import ALIVE_TOPIC, SEQUENCE_TOPIC

logger = logging.getLogger("msight_bus")


class PubSubConsumer:
    """One subscription (backends.base.Consumer, reconnecting.Subscriber).

    Attributes:
        routes: one for each topic and pattern.
        inbox: the inbox of the user's subscription.
    """

    def __init__(
        self,
        selection: Selection,
        inbox: Inbox,
        connection: ReconnectingConnection,
        limits: Limits,
        on_closed: Callable[[ReconnectingConnection], Awaitable[None]] | None,
        *,
        number: int,
    ) -> None:
        """
        Args:
            selection: the topics and options.
            inbox: receives the messages.
            connection: the connection to subscribe on.
            limits: deadlines.
            on_closed: closes a dedicated connection after unsubscribing; ``None`` on a shared connection.
            number: identifies the subscription on its connection.
        """
        self.inbox: Inbox | None = inbox
        group_id = selection.group_id
        self.routes: list[Route] = [
            Route(
                name,
                group_id,
                inbox.stream(name),
                self._refused,
                subscription=number,
                name=inbox.topic_of(name),
                inbox=inbox,
                ordered=selection.many,
            )
            for name in (*selection.topics, *selection.mapped)
        ]
        self.routes += [
            PatternRoute(pattern, selection, inbox, self._refused, number, limits.stats_topics)
            for pattern in selection.patterns
        ]
        self._inbox = inbox
        self._connection = connection
        self._limits = limits
        self._on_closed = on_closed
        self._shed_timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def _refused(self, error: BusError) -> None:
        self._connection.fail(self, error)

    @property
    def lag(self) -> None:
        """Always ``None``: there is no log."""

    def pause(self) -> None:
        """Stop reading for at most ``block_timeout``: the broker closes a connection that is not read for long."""
        if self._shed_timer is None:
            connection = self._connection.connection
            if connection is not None:
                connection.pause_reading()
                self._shed_timer = asyncio.get_running_loop().call_later(self._limits.block_timeout, self._shed)

    def resume(self) -> None:
        """Resume reading."""
        if self._shed_timer is not None:
            self._shed_timer.cancel()
            self._shed_timer = None
            connection = self._connection.connection
            if connection is not None:
                connection.resume_reading()

    @property
    def paused(self) -> bool:
        """Whether the queue is full and the block timeout has not passed."""
        return self._shed_timer is not None

    def _shed(self) -> None:
        self._inbox.shed()
        self.resume()

    async def stop(self) -> None:
        """Unsubscribe; messages in transit are still delivered."""
        if not self._stopped:
            self._stopped = True
            self.resume()
            await self._connection.leave(self)

    async def commit(self) -> None:
        """Do nothing: there are no acknowledgements."""

    async def close(self) -> None:
        """Unsubscribe, and close a dedicated connection."""
        try:
            await self.stop()
        finally:
            if self._on_closed is not None:
                await self._on_closed(self._connection)


class PubSubBackend:
    """A backend for a broker without persistence (backends.base.Backend)."""

    def __init__(
        self,
        settings: BusSettings,
        connector: Connector,
        report: Callable[[BusEvent], None],
        new_session: Callable[[], int],
    ) -> None:
        self._limits = settings.limits
        self._connector = connector
        self._report = report
        self._disconnected: set[ReconnectingConnection] = set()
        self._publishing = self._connection(publishes=True)
        self._subscribing = self._publishing if connector.shares_connection else self._connection(publishes=False)
        self._dedicated: set[ReconnectingConnection] = set()
        self._subscriptions = 0
        self._announcer = (
            SequenceAnnouncer(self._announce, self._limits.announce_interval) if connector.announces else None
        )
        self._topics = PublishedTopics(self._limits.publisher_topics, new_session, self._announcer)
        self._listening: dict[ReconnectingConnection, AnnouncementSubscriber] = {}
        self._tasks = BackgroundTasks()
        self._alarm = Alarm(self._abort)
        if self._announcer is not None:
            self._announcer.after_scan = self._topics.trim
            self._counter = TopicCounter(SEQUENCE_TOPIC, new_session() or 1)

    @property
    def capabilities(self) -> Capabilities:
        """The broker's capabilities; final once `open` has returned, except ``tail_loss``, which a refusal can turn off."""
        works = self._announcer is not None and self._announcer.works and self._announcer.others_come
        return replace(self._connector.capabilities, tail_loss=works)

    def _connection(self, *, publishes: bool) -> ReconnectingConnection:
        return ReconnectingConnection(
            self._connector,
            self._limits,
            publishes=publishes,
            on_lost=self._lost,
            on_reconnected=self._reconnected,
            on_refused=self._refused,
        )

    def _lost(self, connection: ReconnectingConnection, reason: BusError) -> None:
        """Report `Disconnected` when the first of the bus's connections is lost."""
        if not self._disconnected:
            state = "" if connection.is_over else ", reconnecting"
            logger.warning("Disconnected from %s%s: %s", self._connector.where, state, reason)
            self._report(Disconnected(str(reason)))
        self._disconnected.add(connection)

    def _reconnected(self, connection: ReconnectingConnection, attempts: int) -> None:
        self._disconnected.discard(connection)
        if not self._disconnected:
            logger.warning("Reconnected to %s after %s.", self._connector.where, counted(attempts, "attempt"))
            self._report(Reconnected(attempts))

    def _refused(self, topic: str, error: BusError) -> None:
        """Assign a refusal that names only a topic: every publisher with unconfirmed messages on the topic raises the error."""
        if topic == SEQUENCE_TOPIC and self._announcer is not None:
            self._announcer.refused(error)
            return
        published = self._topics.known(topic)
        for publisher in list(published.publishers) if published is not None else ():
            if publisher.unconfirmed is not None and publisher.unconfirmed.count:
                publisher.refused(error)

    async def open(self) -> None:
        """Open the publishing connection (`Backend.open`); the subscribing one opens with the first subscription."""
        await self._publishing.open()
        if self._announcer is not None:
            self._tasks.start(self._announcer.run, "announcer")
            self._tasks.start(self._watch_for_silence, "quiet publishers")

    def _heard_session(self, session: int) -> None:
        if self._announcer is not None and not self._topics.is_own(session):
            self._announcer.heard_other()

    async def _watch_for_silence(self) -> None:
        """Check periodically whether announcements arrive: without them, tail losses are not detected."""
        assert self._announcer is not None
        while True:
            await asyncio.sleep(self._limits.announce_interval)
            for connection in list(self._listening):
                for topic, seconds in connection.silences():
                    self._announcer.notice_silence(topic, seconds)

    def check_topic(self, entry: str) -> None:
        """Accept every name and pattern (`Backend.check_topic`)."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection to publish on is open."""
        return self._publishing.connection is not None

    @property
    def can_subscribe(self) -> bool:
        """Whether the connection that subscriptions share is open (`PresenceBackend.can_subscribe`)."""
        return self._subscribing.connection is not None

    @property
    def published(self) -> Iterator[TopicCounter]:
        """The counters of the topics that the bus has published on (`Backend.published`)."""
        return (topic.counter for topic in self._topics.all)

    def publisher(self, topic: str, name: str | None, *, keeps: bool, creates: bool = True) -> PubSubPublisher:
        """Make a publisher on ``topic``; ``name`` and ``creates`` are not used."""
        return PubSubPublisher(self._topics, topic, self._publishing, self._limits, self._report, keeps=keeps)

    async def flush(self) -> None:
        """Wait for a round trip after everything published (`Backend.flush`).

        Raises:
            PublishTimeoutError: no answer within ``publish_timeout``.
        """
        await self._publishing.confirm()

    async def subscribe(self, selection: Selection, inbox: Inbox) -> PubSubConsumer:
        """Subscribe (`Backend.subscribe`).

        A subscription with the ``block`` policy gets a dedicated connection, because pausing pauses the whole connection.
        """
        number = self._subscriptions = self._subscriptions + 1
        connection, on_closed = self._subscribing, None
        if selection.queue.when_full == "block":
            connection, on_closed = self._connection(publishes=False), self._end
            self._dedicated.add(connection)
        consumer = PubSubConsumer(selection, inbox, connection, self._limits, on_closed, number=number)
        try:
            await self._open_for(selection, connection)
            if not selection.name.startswith(ALIVE_TOPIC):  # no message is expected there
                await self._listen_for_announcements(connection, selection.name)
            await connection.join(consumer, selection.name)
        except BaseException:
            await run_shielded(consumer.close())
            raise
        return consumer

    async def _open_for(self, selection: Selection, connection: ReconnectingConnection) -> None:
        """Open a subscription's connection; retry while the broker is down.

        Raises:
            ConnectionLostError: the broker was not reached within ``connect_timeout`` seconds.
            AuthenticationError: the broker refused the credentials, or a certificate was refused.
        """
        within = self._limits.connect_timeout
        end = asyncio.get_running_loop().time() + within
        pause = self._limits.reconnect_min
        while True:
            try:
                # a swallowed cancellation would only begin the next attempt
                return await reraise_swallowed(connection.open())
            except ConnectionLostError as error:
                if asyncio.get_running_loop().time() + pause >= end:
                    raise ConnectionLostError(
                        f"The subscription to {selection.name!r} was not confirmed within {within:g} s "
                        f"(MSIGHT_CONNECT_TIMEOUT): {error}"
                    ) from error.__cause__
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._limits.reconnect_max)

    async def _listen_for_announcements(self, connection: ReconnectingConnection, name: str) -> None:
        if self._announcer is None or connection in self._listening or not self._announcer.works:
            return
        listening = self._listening[connection] = AnnouncementSubscriber(
            connection.streams, self._heard_session, self._announcer.refused
        )
        try:
            await connection.join(listening, name)
        except AuthenticationError as error:
            self._announcer.refused(error)
        except BaseException:
            self._listening.pop(connection, None)  # the next subscription retries
            raise

    async def has_subscribers(self, topic: str) -> bool | None:
        """Ask the broker whether a topic has a subscriber (`PresenceBackend.has_subscribers`)."""
        connection = self._publishing.connection
        if connection is None:
            return None
        try:
            async with asyncio.timeout(self._limits.pong_timeout):
                return await connection.has_subscribers(topic)
        except (TimeoutError, BusError):
            return None

    async def ping(self) -> None:
        """Wait for the response to one PING (`Backend.ping`).

        Raises:
            ConnectionLostError: the broker did not respond, or the bus is disconnected.
        """
        connection = self._publishing.connection
        if connection is None:
            raise ConnectionLostError(f"Disconnected from {self._connector.where}.")
        answer = connection.ping().answer
        if not (await asyncio.wait((answer,), timeout=self._limits.pong_timeout))[0]:
            raise ConnectionLostError(
                f"{self._connector.where} did not respond to a PING within {self._limits.pong_timeout:g} s (MSIGHT_PONG_TIMEOUT)."
            )
        answer.result()

    def _announce(self, announcer: Sender, announcement: bytes) -> bool:
        connection = self._publishing.connection
        if connection is None or connection.congested:
            return False
        connection.publish(announcer, self._counter, announcement, None, None)
        return True

    async def _end(self, connection: ReconnectingConnection) -> None:
        self._dedicated.discard(connection)
        self._listening.pop(connection, None)
        await connection.close(self._limits.pong_timeout)
        if connection in self._disconnected:  # else the bus stays disconnected although its other connections are open
            self._reconnected(connection, 0)

    def abort_at(self, when: float | None) -> None:
        """Abort every connection at ``when`` (`Backend.abort_at`)."""
        self._alarm.set(when)

    def _abort(self) -> None:
        for connection in (self._publishing, self._subscribing, *self._dedicated):
            connection.abort(aborted())

    async def close(self) -> None:
        """Announce the last sequences, flush and close every connection, within ``pong_timeout`` each."""
        await self._tasks.stop()
        within = self._alarm.left(self._limits.pong_timeout)
        if self._announcer is not None:
            is_disconnected = self._publishing.connection is None
            await self._announcer.announce_last(self._topics.all, 0.0 if is_disconnected else within)
        connections = {self._publishing, self._subscribing, *self._dedicated}
        await asyncio.gather(*(connection.close(within) for connection in connections))
        self._alarm.set(None)
