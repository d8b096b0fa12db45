"""Which nodes are alive on this broker, by their own announcements.

Every node says what it is and how it fares on the reserved topic ``_msight.nodes``, once each heartbeat interval. There is
no server that keeps a list, so it works on every backend, and an observer has the whole picture after one interval. What
arrives was written by anybody: it is parsed into one bounded type, and nothing in it is imported or evaluated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from enum import StrEnum
from typing import Annotated, Protocol

import msgspec

from msight_bus.errors import BusError, ClosedError
from msight_bus.message import Message
from msight_bus.queues import QueuePolicy
from msight_bus.subscription import Subscription
from msight_bus.tasks import BackgroundTasks
from msight_bus.topics import NODES_TOPIC

logger = logging.getLogger("msight_bus")

MAX_NODES = 10_000
MAX_ANNOUNCEMENT_BYTES = 8192
LONGEST_INTERVAL = 3600.0
"""Seconds between two heartbeats at most."""

FORGET_AFTER = 3600.0
"""Seconds for which a node that has ended or was lost is still shown."""

_MISSED_HEARTBEATS = 3

# Names are shown in terminals, so they must not carry control characters, nor marks that turn the direction of text.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,200}\Z")]
Text = Annotated[
    str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]{0,200}\Z")
]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class NodeStatus(StrEnum):
    """How a node fares; every value but ``LOST`` is the node's own word."""

    REGISTERED = "REGISTERED"
    """It is starting."""
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    """It has ended in order."""
    ERROR = "ERROR"
    """It has ended by an error, or its code has been stuck for longer than ``heartbeat_tolerance``."""
    LOST = "LOST"
    """Nothing was heard of it for three heartbeat intervals."""


class NodeMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a node measured; totals since its start.

    Attributes:
        messages_in: inputs taken.
        messages_out: outputs handed to the broker.
        rate_in: inputs a second over the last interval.
        rate_out: outputs a second over the last interval.
        queued: inputs that wait in the node's queue now.
        dropped: inputs dropped by its queue, and outputs given up while the broker was away.
        errors: errors in the node's own code.
        undecodable: inputs that were not the data they should be.
        latency_p50_ms, latency_p99_ms: milliseconds from the publishing of an input (its publisher's clock) until the
            node's outputs were handed over; for a source, from asking for data until it was handed over. Of the last
            interval in which there was any.
    """

    messages_in: Count = 0
    messages_out: Count = 0
    rate_in: Seconds = 0.0
    rate_out: Seconds = 0.0
    queued: Count = 0
    dropped: Count = 0
    errors: Count = 0
    undecodable: Count = 0
    latency_p50_ms: Seconds | None = None
    latency_p99_ms: Seconds | None = None


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One running node, as it announced itself.

    Attributes:
        name: of the node; the workers of a group share it.
        instance: random, new at each start.
        type: the node's class, for people.
        device: where it runs, for people.
        status: see `NodeStatus`.
        started_at: POSIX seconds by the node's clock.
        heartbeat_interval: seconds between two announcements.
        publish_topic, subscribe_topic, group_id: as the node is configured.
        last_heartbeat: POSIX seconds; in a registry by the observer's clock.
        ended: this was its last announcement.
        metrics: see `NodeMetrics`.
    """

    name: Name
    instance: Name
    type: Text
    device: Text
    status: NodeStatus
    started_at: float
    heartbeat_interval: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_INTERVAL)]
    publish_topic: Name | None = None
    subscribe_topic: Name | None = None
    group_id: Name | None = None
    last_heartbeat: float = 0.0
    ended: bool = False
    metrics: NodeMetrics = NodeMetrics()


class Listens(Protocol):
    """The core of a bus, as far as the registry needs it."""

    def subscribe(self, topics: tuple[str, ...], *, queue: QueuePolicy | None = None) -> Subscription:
        """Subscribe, to a reserved topic too."""


class Registry:
    """The nodes on a broker: ``registry = await bus.nodes()``, then iterate it whenever you like.

    Awaiting starts to listen and returns the registry once the broker has confirmed. Without that, the first look at it
    inside a running loop starts listening in the background.

    Attributes:
        ignored: announcements that could not be understood.
    """

    def __init__(self, bus: Listens, *, clock: Callable[[], float] | None = None) -> None:
        """``clock`` gives seconds, for the age of heartbeats; by default it is the running loop's."""
        self.ignored = 0
        self._bus = bus
        self._clock = _loop_clock() if clock is None else clock
        # By name and instance; the last heard is the last entry.
        self._heard: OrderedDict[tuple[str, str], tuple[NodeInfo, float]] = OrderedDict()
        self._decoder = msgspec.json.Decoder(NodeInfo)
        self._tasks = BackgroundTasks()
        self._task: asyncio.Task[None] | None = None
        self._confirmed: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._closed = False

    # -- looking

    def __iter__(self) -> Iterator[NodeInfo]:
        """Every node as known now, by name."""
        return iter(self._snapshot())

    def __len__(self) -> int:
        return len(self._snapshot())

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return any(info.name == name for info in self._snapshot())

    def __getitem__(self, name: str) -> NodeInfo:
        """The node of this name; if it has several instances, the one that was heard last.

        Raises:
            KeyError: no such node is known.
        """
        found = self.instances(name)
        if not found:
            raise KeyError(name)
        return max(found, key=lambda info: info.last_heartbeat)

    def instances(self, name: str) -> tuple[NodeInfo, ...]:
        """Every node of this name: the workers of a group, and earlier runs for a while."""
        return tuple(info for info in self._snapshot() if info.name == name)

    def __repr__(self) -> str:
        shown = ", ".join(f"{info.name} {info.status}" for info in self._now())
        return f"Registry({shown})"

    async def wait_until(self, condition: Callable[[Registry], bool]) -> None:
        """Wait until ``condition(registry)`` holds; it is asked again at each announcement.

        Raises:
            ClosedError: the registry was closed before.
            BusError: listening failed.
        """
        await self
        while not condition(self):
            if self._task is None or self._task.done():
                raise ClosedError("The registry is closed.")
            if self._news is None:
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._news,))

    def _snapshot(self) -> list[NodeInfo]:
        self._start_in_background()
        return self._now()

    def _now(self) -> list[NodeInfo]:
        now = self._clock()
        shown: list[NodeInfo] = []
        for key, (info, heard_at) in list(self._heard.items()):
            silent = now - heard_at
            lost = not info.ended and silent > _MISSED_HEARTBEATS * info.heartbeat_interval
            if (lost or info.ended) and silent > max(FORGET_AFTER, _MISSED_HEARTBEATS * info.heartbeat_interval):
                del self._heard[key]
            else:
                shown.append(msgspec.structs.replace(info, status=NodeStatus.LOST) if lost else info)
        return sorted(shown, key=lambda info: (info.name, info.started_at, info.instance))

    # -- listening

    def __await__(self) -> Generator[object, None, Registry]:
        return self._listening().__await__()

    async def _listening(self) -> Registry:
        if self._closed:
            raise ClosedError("The registry is closed.")
        confirmed = self._confirmed
        if confirmed is None or self._task is None or self._task.done():
            confirmed = self._start()
        await asyncio.shield(confirmed)
        return self

    def _start_in_background(self) -> None:
        if self._confirmed is not None or self._closed:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # looked at from outside a loop: what is known is all there is
        self._start()

    def _start(self) -> asyncio.Future[None]:
        confirmed = self._confirmed = asyncio.get_running_loop().create_future()
        self._task = self._tasks.start(lambda: self._listen(confirmed), "registry")
        return confirmed

    async def _listen(self, confirmed: asyncio.Future[None]) -> None:
        try:
            # A heartbeat that is dropped is replaced by the node's next one, so nothing has to wait for this reader.
            subscription = self._bus.subscribe((NODES_TOPIC,), queue=QueuePolicy.drop_oldest(MAX_NODES))
            async with subscription as announcements:
                if not confirmed.done():
                    confirmed.set_result(None)
                async for batch in announcements.batches(256):
                    for message in batch:
                        self._observe(message)
                    self._tell()
        except BusError as error:
            if not self._closed:
                logger.warning("Nodes on this broker cannot be observed: %s", error)
            _fail(confirmed, error)
        finally:
            _fail(confirmed, ClosedError("The registry is closed."))
            self._tell()

    def _observe(self, message: Message) -> None:
        if len(message.payload) > MAX_ANNOUNCEMENT_BYTES:
            self.ignored += 1
            return
        try:
            info = self._decoder.decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.ignored += 1
            return
        # Ages are counted by this machine's clock: the node's may be wrong.
        key = (info.name, info.instance)
        self._heard[key] = (msgspec.structs.replace(info, last_heartbeat=message.received_at), self._clock())
        self._heard.move_to_end(key)
        if len(self._heard) > MAX_NODES:
            self._heard.popitem(last=False)

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    async def close(self) -> None:
        """Listen no more; what is known stays readable."""
        self._closed = True
        await self._tasks.stop()


def _loop_clock() -> Callable[[], float]:
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic


def _fail(confirmed: asyncio.Future[None], error: BusError) -> None:
    if not confirmed.done():
        confirmed.set_exception(error)
        confirmed.exception()  # marks it as seen: that nobody waits for it is no mistake
