"""What Redis and NATS have in common: a live stream that nobody keeps.

A connector opens connections, each a `Link` with the broker's protocol; publishing, subscribing and flow control
are the same for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol

from msight_bus.adapters.base import WAIT, Sink, Stamp, SubscribeRequest, Wait
from msight_bus.adapters.ending import finish
from msight_bus.adapters.supervisor import SupervisedLink, Supervisor
from msight_bus.adapters.tail import Announcer, TailSink
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.events import BusEvent, Disconnected, Reconnected
from msight_bus.queues import QueuePolicy
from msight_bus.settings import BusSettings, Limits
from msight_bus.topics import SEQUENCE_TOPIC


class LiveLink(SupervisedLink):
    """A link that publishes and subscribes."""

    def publish(self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Write one message; the caller has seen to it that there is room."""
        raise NotImplementedError

    def add(self, feed: LiveFeed) -> asyncio.Future[None]:
        """Subscribe; done when the broker has confirmed."""
        raise NotImplementedError

    def remove(self, feed: LiveFeed) -> asyncio.Future[None]:
        """Unsubscribe; done when the broker sends no more."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Deliver no more."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Deliver again."""
        raise NotImplementedError


Connection = Supervisor[LiveLink, "LiveFeed"]


class LiveFeed:
    """One subscription on a live broker (adapters.base.Feed)."""

    def __init__(
        self,
        request: SubscribeRequest,
        sink: Sink,
        connection: Connection,
        limits: Limits,
        on_closed: Callable[[Connection], Awaitable[None]] | None,
    ) -> None:
        """``on_closed`` ends the connection if it was opened for this subscription alone."""
        self.topic = request.topic
        self.group_id = request.group_id
        self.sink = sink
        self.connection = connection
        self._limits = limits
        self._on_closed = on_closed
        self._shed_timer: asyncio.TimerHandle | None = None
        self._stopped = False

    async def start(self) -> None:
        """Subscribe and wait for the confirmation."""
        link = await self.connection.open()
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                await link.add(self)
        except TimeoutError:
            raise ConnectionLostError(
                f"The subscription to {self.topic!r} was not confirmed within {self._limits.connect_timeout:g} s."
            ) from None
        self.connection.feeds.append(self)

    def pause(self) -> None:
        """Stop reading for at most ``block_timeout``: the broker cuts a reader that stalls for longer."""
        if self._shed_timer is None and self.connection.link is not None:
            self.connection.link.pause_reading()
            self._shed_timer = asyncio.get_running_loop().call_later(self._limits.block_timeout, self._shed)

    def resume(self) -> None:
        """Read again."""
        if self._shed_timer is not None:
            self._shed_timer.cancel()
            self._shed_timer = None
            if self.connection.link is not None:
                self.connection.link.resume_reading()

    @property
    def paused(self) -> bool:
        """Whether the queue is full and the block timeout has not passed."""
        return self._shed_timer is not None

    def _shed(self) -> None:
        self.sink.shed()
        self.resume()

    async def stop(self) -> None:
        """Unsubscribe; what was on its way is still delivered."""
        if self._stopped:
            return
        self._stopped = True
        self.resume()
        if self in self.connection.feeds:
            self.connection.feeds.remove(self)
        link = self.connection.link
        if link is not None:
            await asyncio.wait((link.remove(self),), timeout=self._limits.pong_timeout)

    @property
    def lag(self) -> None:
        """There is no log."""

    async def commit(self) -> None:
        """Nothing is acknowledged here."""

    async def close(self) -> None:
        """Unsubscribe, and close the connection that was opened for this subscription."""
        try:
            await self.stop()
        finally:
            if self._on_closed is not None:
                await self._on_closed(self.connection)


class Connector(Protocol):
    """Opens connections to a broker."""

    @property
    def capabilities(self) -> Capabilities:
        """What the broker does; complete once a connection was opened."""

    @property
    def refusal_patience(self) -> float:
        """Seconds for which a refusal on reconnecting is tried again; 0 believes the first one."""

    async def connect_publisher(self, owner: Connection) -> LiveLink:
        """Open a connection that publishes, within ``connect_timeout``.

        Raises:
            ConnectionLostError: not reachable, or no server is fit for use.
            AuthenticationError: every server that can be reached refused.
            ConfigError: a file with a secret or a certificate cannot be used now.
        """

    async def connect_subscriber(self, owner: Connection) -> LiveLink:
        """Open a connection that subscribes."""

    @property
    def announces(self) -> bool:
        """Whether messages carry sequences, so that the last ones can be announced."""

    @property
    def shares_connection(self) -> bool:
        """Whether publishing and subscribing use the same connection."""


class LiveAdapter:
    """Publishes and subscribes on a live broker (adapters.base.Adapter)."""

    def __init__(
        self, settings: BusSettings, connector: Connector, stamp: Stamp, report: Callable[[BusEvent], None]
    ) -> None:
        self._limits = settings.limits
        self._connector = connector
        self._report = report
        self._lost: set[Connection] = set()
        self._publishing = self._supervisor(connector.connect_publisher)
        self._subscribing = (
            self._publishing if connector.shares_connection else self._supervisor(connector.connect_subscriber)
        )
        self._dedicated: set[Connection] = set()
        self._announcer = Announcer(stamp, self._announce) if connector.announces else None
        self._announcing: asyncio.Task[None] | None = None
        self._listening: set[Connection] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What the broker does; complete once it is open."""
        works = self._announcer is not None and self._announcer.works
        return replace(self._connector.capabilities, tail_loss=works)

    def _supervisor(self, connect: Callable[[Connection], Awaitable[LiveLink]]) -> Connection:
        async def resubscribe(link: LiveLink, feed: LiveFeed) -> None:
            await link.add(feed)
            if feed.paused:
                link.pause_reading()

        connection: Connection = Supervisor(
            connect,
            resubscribe,
            self._limits,
            lambda event: self._relay(connection, event),
            self._connector.refusal_patience,
        )
        return connection

    def _relay(self, connection: Connection, event: BusEvent) -> None:
        """A bus is disconnected from the first connection that is lost to the last one that is back."""
        if isinstance(event, Disconnected):
            self._lost.add(connection)
            if len(self._lost) > 1:
                return
        elif isinstance(event, Reconnected):
            self._lost.discard(connection)
            if self._lost:
                return
        self._report(event)

    async def open(self) -> None:
        """Open the publishing connection; the other one opens with the first subscription."""
        await self._publishing.open()
        if self._announcer is not None:
            run = self._announcer.run(self._limits.announce_interval)
            self._announcing = asyncio.create_task(run, name="msight_bus announcer")

    def publish(
        self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None, name: str | None
    ) -> Wait | None:
        """Hand one message to the connection, if it takes one now."""
        connection = self._publishing
        if connection.refused:
            error = connection.refused.pop(topic, None)
            if error is not None:
                raise error
        link = connection.link
        if link is None or link.congested:
            return WAIT
        link.publish(topic, payload, key, headers)
        return None

    async def ready(self, topic: str, key: str | None, name: str | None) -> None:
        """Wait until the connection is open and has room."""
        await self._publishing.ready(self._limits.publish_timeout)

    async def flush(self, topic: str | None = None) -> None:
        """Round trip to the broker; raises what was refused or never confirmed on ``topic``."""
        await self._publishing.flush(topic, self._limits.publish_timeout)

    async def subscribe(self, request: SubscribeRequest, sink: Sink) -> LiveFeed:
        """Subscribe; a blocking subscription gets a connection of its own, since pausing it pauses all it carries."""
        if request.queue.when_full == "block":
            connection = self._supervisor(self._connector.connect_subscriber)
            self._dedicated.add(connection)
            feed = LiveFeed(request, sink, connection, self._limits, self._end)
        else:
            feed = LiveFeed(request, sink, self._subscribing, self._limits, None)
        try:
            await self._listen_for_announcements(feed.connection)
            await feed.start()
        except BaseException:
            await finish(feed.close())
            raise
        return feed

    async def _listen_for_announcements(self, connection: Connection) -> None:
        if self._announcer is None or connection in self._listening or not self._announcer.works:
            return
        await connection.open()  # a refusal of the connection is none of the topic
        announcer = self._announcer

        def refused(error: BusError) -> None:
            if not connection.has_given_up:  # else the connection was refused, not the topic
                announcer.refused(error)

        sink = TailSink(connection.feeds, refused)
        request = SubscribeRequest(SEQUENCE_TOPIC, None, QueuePolicy.drop_oldest(1), "latest")
        self._listening.add(connection)
        try:
            await LiveFeed(request, sink, connection, self._limits, None).start()
        except AuthenticationError as error:
            self._announcer.refused(error)
        except BaseException:
            self._listening.discard(connection)  # the next subscription tries again
            raise

    def _announce(self, announcement: bytes) -> bool:
        assert self._announcer is not None
        connection = self._publishing
        error = connection.refused.pop(SEQUENCE_TOPIC, None)
        if isinstance(error, AuthenticationError):  # any other error passes
            self._announcer.refused(error)
        link = connection.link
        if error is not None or link is None or link.congested:
            return False
        link.publish(SEQUENCE_TOPIC, announcement, None, None)
        return True

    async def _end(self, connection: Connection) -> None:
        self._dedicated.discard(connection)
        self._lost.discard(connection)
        self._listening.discard(connection)
        await connection.close(self._limits.pong_timeout)

    async def close(self) -> None:
        """Announce the last sequences, flush and close every connection."""
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.wait((self._announcing,))
        if self._announcer is not None:
            self._announcer.look(last=True)
        connections = {self._publishing, self._subscribing, *self._dedicated}
        await asyncio.gather(*(connection.close(self._limits.pong_timeout) for connection in connections))
