"""A broker inside the process: the same contract without a server, for unit tests and single-process pipelines.

Buses on one event loop meet here, as they would on a broker. Messages are delivered synchronously, groups share in turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from msight_bus.adapters.base import WAIT, Sink, Stamp, SubscribeRequest, Wait
from msight_bus.capabilities import Capabilities
from msight_bus.errors import MessageTooLargeError, PublishTimeoutError
from msight_bus.events import BusEvent
from msight_bus.message import NO_HEADERS, Message
from msight_bus.settings import BusSettings


class Member(Protocol):
    """A subscription as the hub sees it."""

    topic: str
    group_id: str | None


M = TypeVar("M", bound=Member)


class Hub(Generic[M]):
    """Subscriptions, by topic and group."""

    def __init__(self) -> None:
        self._topics: dict[str, dict[str | None, list[M]]] = {}

    def join(self, feed: M) -> None:
        self._topics.setdefault(feed.topic, {}).setdefault(feed.group_id, []).append(feed)

    def leave(self, feed: M) -> None:
        groups = self._topics.get(feed.topic, {})
        members = groups.get(feed.group_id, [])
        if feed in members:
            members.remove(feed)
            if not members:
                del groups[feed.group_id]
            if not groups:
                del self._topics[feed.topic]

    def feeds(self, topic: str) -> list[M]:
        """Every feed of the topic."""
        return [feed for members in self._topics.get(topic, {}).values() for feed in members]

    def receivers(self, topic: str) -> list[M]:
        """Every feed without a group, and the next member of each group."""
        chosen: list[M] = []
        for group_id, members in self._topics.get(topic, {}).items():
            if group_id is None:
                chosen.extend(members)
            else:
                members.append(members.pop(0))
                chosen.append(members[-1])
        return chosen


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, Hub[MemoryFeed]] = WeakKeyDictionary()


class MemoryFeed:
    """One subscription (adapters.base.Feed)."""

    def __init__(self, hub: Hub[MemoryFeed], request: SubscribeRequest, sink: Sink, block_timeout: float) -> None:
        self.topic = request.topic
        self.group_id = request.group_id
        self._hub = hub
        self.sink = sink
        self._block_timeout = block_timeout
        self._shed_timer: asyncio.TimerHandle | None = None
        self.has_room = asyncio.Event()
        self.has_room.set()
        hub.join(self)

    def pause(self) -> None:
        """The queue is full: as on a live broker, wait ``block_timeout`` and then drop the newest."""
        if self._shed_timer is None:
            self.has_room.clear()
            self._shed_timer = asyncio.get_running_loop().call_later(self._block_timeout, self._shed)

    def resume(self) -> None:
        """There is room again."""
        if self._shed_timer is not None:
            self._shed_timer.cancel()
            self._shed_timer = None
        self.has_room.set()

    def _shed(self) -> None:
        self.sink.shed()
        self.resume()

    @property
    def paused(self) -> bool:
        """Whether publishers have to wait for this subscription."""
        return not self.has_room.is_set()

    async def stop(self) -> None:
        """Leave the topic."""
        self._hub.leave(self)
        self.resume()

    @property
    def lag(self) -> None:
        """There is no log."""

    async def commit(self) -> None:
        """Nothing is acknowledged here."""

    async def close(self) -> None:
        """Leave the topic."""
        await self.stop()


class MemoryAdapter:
    """The in-process broker (adapters.base.Adapter)."""

    def __init__(self, settings: BusSettings, stamp: Stamp, report: Callable[[BusEvent], None]) -> None:
        self._limits = settings.limits
        self._stamp = stamp
        self._had_turn = False
        self.capabilities = Capabilities(
            persistence=False,
            delivery="best-effort",
            routing="broadcast or queue group",
            load_balancing=True,
            replay=False,
            acknowledgement=False,
            native_headers=True,
            tail_loss=True,
            max_message_bytes=settings.limits.max_message_bytes,
        )

    async def open(self) -> None:
        """Join this loop's hub."""
        self._hub = _hubs.setdefault(asyncio.get_running_loop(), Hub())

    def publish(
        self, topic: str, payload: bytes, key: str | None, headers: Mapping[str, str] | None, name: str | None
    ) -> Wait | None:
        """Deliver to every receiver, if none of them blocks and consumers have had their turn."""
        limit = self._limits.max_message_bytes
        size = len(payload) + sum(len(name) + len(value) for name, value in (headers or {}).items())
        if size > limit:
            raise MessageTooLargeError(
                f"The message takes {size} bytes with its headers and {limit} are accepted (MSIGHT_MAX_MESSAGE_BYTES).",
                size=size,
                limit=limit,
            )
        feeds = self._hub.feeds(topic)
        if not self._had_turn or any(feed.paused for feed in feeds):
            return WAIT
        self._had_turn = False
        now = time.time()
        sequence = self._stamp.next(topic)
        for feed in self._hub.receivers(topic):
            feed.sink.deliver(
                [
                    Message(
                        topic=topic,
                        payload=payload,
                        headers=dict(headers) if headers else NO_HEADERS,
                        key=key,
                        session=self._stamp.session,
                        sequence=sequence,
                        published_at=now,
                        received_at=now,
                    )
                ]
            )

        return None

    async def ready(self, topic: str, key: str | None, name: str | None) -> None:
        """Give consumers in this process their turn, as a network would, and wait while a receiver blocks."""
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self._limits.publish_timeout):
                for feed in self._hub.feeds(topic):
                    await feed.has_room.wait()
        except TimeoutError:
            raise PublishTimeoutError(
                f"A subscriber of {topic!r} has had no room for {self._limits.publish_timeout:g} s (MSIGHT_PUBLISH_TIMEOUT)."
            ) from None
        self._had_turn = True

    async def flush(self, topic: str | None = None) -> None:
        """Everything is delivered at once."""

    async def subscribe(self, request: SubscribeRequest, sink: Sink) -> MemoryFeed:
        """Join the topic."""
        return MemoryFeed(self._hub, request, sink, self._limits.block_timeout)

    async def close(self) -> None:
        """Nothing is held."""
