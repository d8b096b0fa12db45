"""Keeps one connection to a live broker open: liveness, reconnecting, resubscribing, and saying what a cut may have cost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from msight_bus.adapters.base import Sink
from msight_bus.adapters.ending import finish
from msight_bus.adapters.in_flight import InFlight
from msight_bus.errors import AuthenticationError, BusError, ClosedError, ConnectionLostError, PublishTimeoutError
from msight_bus.events import BusEvent, Disconnected, Reconnected, Refused
from msight_bus.settings import Limits

logger = logging.getLogger("msight_bus")


class SupervisedLink(Protocol):
    """One open connection as the supervisor sees it; it lives once.

    Attributes:
        congested: a publisher has to await `drained` before it writes more.
        in_flight: what was written and is not confirmed.
        gone: done once the connection is lost or closed.
        received_at: when something last came, by the loop's clock, in seconds.
        reading_paused: what arrives is left where it is.
    """

    congested: bool
    in_flight: InFlight
    gone: asyncio.Future[None]
    received_at: float
    reading_paused: bool

    async def drained(self) -> None:
        """Wait until there is room to write, or the link is gone."""
        raise NotImplementedError

    def ping(self) -> asyncio.Future[None]:
        """Ask for a sign of life; done when the broker has processed all that was written before."""
        raise NotImplementedError

    def fail(self, error: BusError) -> None:
        """Give the link up for ``error``."""
        raise NotImplementedError

    async def close(self, within: float) -> None:
        """Write what is left and close; whatever is not gone after ``within`` seconds is cut."""
        raise NotImplementedError


class LiveFeedLike(Protocol):
    """A subscription as the supervisor sees it."""

    sink: Sink


L = TypeVar("L", bound=SupervisedLink)
F = TypeVar("F", bound=LiveFeedLike)


class Supervisor(Generic[L, F]):
    """Owner of one connection's state: everything else holds it and asks for the current link.

    Attributes:
        link: the open link, ``None`` while reconnecting.
        feeds: subscriptions to put back after a reconnect.
        refused: what the broker refused after it was handed over, by topic; the next publish raises it.
        unconfirmed: messages written before a cut and never confirmed, by topic.
    """

    def __init__(
        self,
        connect: Callable[[Supervisor[L, F]], Awaitable[L]],
        resubscribe: Callable[[L, F], Awaitable[None]],
        limits: Limits,
        report: Callable[[BusEvent], None],
        refusal_patience: float = 0.0,
    ) -> None:
        """
        Args:
            connect: opens a connection within ``connect_timeout``.
            resubscribe: subscribes again on it.
            limits: deadlines and pauses.
            report: is told of the connection's state.
            refusal_patience: seconds for which a refusal on reconnecting is tried again.
        """
        self.link: L | None = None
        self.feeds: list[F] = []
        self.refused: dict[str, BusError] = {}
        self.unconfirmed: Counter[str] = Counter()
        self._connect = connect
        self._resubscribe = resubscribe
        self._limits = limits
        self._report = report
        self._refusal_patience = refusal_patience
        self._lost = asyncio.Event()
        self._back = asyncio.Event()
        self._reason: BusError | None = None
        self._failed: BusError | None = None
        self._closed = False
        self._opening = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def has_given_up(self) -> bool:
        """Whether nobody will connect again."""
        return self._failed is not None

    async def open(self) -> L:
        """Connect once, unless it is done already; returns the link.

        Raises:
            ConnectionLostError: not reachable within ``connect_timeout``.
            AuthenticationError: refused.
        """
        async with self._opening:
            if self._task is None:
                self._take(await self._connect(self))
                self._task = asyncio.create_task(self._supervise(), name="msight_bus supervisor")
        return self.link if self.link is not None else await self.ready(self._limits.connect_timeout)

    def _take(self, link: L) -> None:
        self._lost.clear()
        self.link = link
        self._back.set()

    async def ready(self, within: float) -> L:
        """The link, once it is open and has room to write.

        Raises:
            PublishTimeoutError: that took longer than ``within`` seconds.
            BusError: the supervisor has given up.
        """
        try:
            async with asyncio.timeout(within):
                while True:
                    if self._failed is not None:
                        raise self._failed
                    if self._closed:
                        raise ClosedError("The bus is closed.")
                    link = self.link
                    if link is None:
                        await self._back.wait()
                    elif link.congested:
                        await link.drained()
                    else:
                        return link
        except TimeoutError:
            state = "is not connected" if self.link is None else "takes no more data"
            raise PublishTimeoutError(f"The broker {state} for {within:g} s now; nothing was sent.") from self._reason

    def lost(self, link: SupervisedLink, reason: BusError) -> None:
        """The link is gone; called by the link itself."""
        self.unconfirmed += link.in_flight.cut(reason)
        if link is not self.link:
            return
        self.link = None
        self._back.clear()
        self._reason = reason
        self._lost.set()

    def refuse(self, topic: str, error: BusError) -> None:
        """The broker refused a message that was handed over before."""
        if topic not in self.refused:
            logger.warning("The broker refused a message on %s: %s", topic, error)
            self.refused[topic] = error
        self._report(Refused(topic, str(error)))

    async def flush(self, topic: str | None, within: float) -> None:
        """Round trip on the link, then raise what went wrong on ``topic``.

        Raises:
            PublishTimeoutError: no answer within ``within`` seconds.
            ConnectionLostError: messages were written before a cut and never confirmed.
            BusError: the broker refused a message.
        """
        link = self.link
        if link is not None and link.in_flight:
            try:
                async with asyncio.timeout(within):
                    await link.ping()
            except ConnectionLostError:
                pass  # the loss is in self.unconfirmed now
            except TimeoutError:
                raise PublishTimeoutError(
                    f"The broker has not confirmed what was published within {within:g} s; it may still arrive."
                ) from None
        if topic is None:
            return
        refused = self.refused.pop(topic, None)
        if refused is not None:
            raise refused
        unconfirmed = self.unconfirmed.pop(topic, 0)
        if unconfirmed:
            raise ConnectionLostError(
                f"{unconfirmed} messages on {topic!r} were written before the connection was cut and never confirmed."
            ) from self._reason

    # -- the life of the connection

    async def _supervise(self) -> None:
        while True:
            if self.link is not None:
                await self._watch(self.link)
            await self._lost.wait()
            if self._failed is not None or not await self._reconnect():
                return

    async def _watch(self, link: L) -> None:
        """Until the link is lost: see that the broker is alive."""
        interval, patience = self._limits.ping_interval, self._limits.pong_timeout
        while not link.gone.done():
            quiet = 0.0 if link.reading_paused else asyncio.get_running_loop().time() - link.received_at
            await asyncio.wait((link.gone,), timeout=max(0.0, interval - quiet))
            asked = asyncio.get_running_loop().time()
            if link.gone.done() or link.reading_paused or asked - link.received_at < interval:
                continue
            answer = link.ping()
            await asyncio.wait((answer, link.gone), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not (answer.done() or link.gone.done() or link.reading_paused) and link.received_at < asked:
                link.fail(ConnectionLostError(f"The broker did not answer for {interval + patience:g} s."))

    async def _reconnect(self) -> bool:
        self._report(Disconnected(str(self._reason)))
        logger.warning("Connection lost, reconnecting: %s", self._reason)
        attempts = 0
        delay = self._limits.reconnect_min
        refused_since: float | None = None
        while True:
            attempts += 1
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self._limits.reconnect_max)
            try:
                link = await self._connect(self)
                # where the client swallowed the cancellation, as asyncio.wait_for does before Python 3.12
                if self._closed:
                    await link.close(0.1)
                    return False
                self._lost.clear()
                try:
                    async with asyncio.timeout(self._limits.connect_timeout):
                        await self._put_back(link)
                except BaseException:
                    await finish(link.close(0.1))
                    raise
            except AuthenticationError as error:
                now = asyncio.get_running_loop().time()
                if refused_since is None:
                    refused_since = now
                    if self._refusal_patience > 0:
                        logger.warning(
                            "Refused; trying for %g s (MSIGHT_REFUSAL_PATIENCE): %s", self._refusal_patience, error
                        )
                if now - refused_since >= self._refusal_patience:
                    return self._give_up(error)
                self._reason = error
                continue
            except (TimeoutError, BusError) as error:
                refused_since = None
                self._reason = error if isinstance(error, BusError) else self._reason
                if self._limits.reconnect_limit is not None and attempts >= self._limits.reconnect_limit:
                    return self._give_up(
                        ConnectionLostError(
                            f"Gave up after {attempts} attempts (MSIGHT_RECONNECT_LIMIT): {self._reason}"
                        )
                    )
                continue
            break
        self._take(link)
        for feed in self.feeds:
            feed.sink.announce_gap(None, "reconnect")
        logger.warning("Connected again after %d attempts.", attempts)
        self._report(Reconnected(attempts))
        return True

    async def _put_back(self, link: L) -> None:
        for feed in list(self.feeds):
            try:
                await self._resubscribe(link, feed)
            except AuthenticationError as error:
                self.feeds.remove(feed)
                feed.sink.fail(error)
        if link.gone.done():  # behind the last answer, when nobody asked it any more
            raise ConnectionLostError("The connection was lost again at once.")

    def _give_up(self, error: BusError) -> bool:
        self._failed = error
        self._back.set()
        for feed in self.feeds:
            feed.sink.fail(error)
        logger.error("Not reconnecting: %s", error)
        return False

    async def close(self, within: float) -> None:
        """Flush what was written, within ``within`` seconds, and close."""
        if self._closed:
            return
        self._closed = True
        self._back.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        link, self.link = self.link, None
        if link is not None:
            if link.in_flight:
                await asyncio.wait((link.ping(),), timeout=within)
            await link.close(within=1.0)
