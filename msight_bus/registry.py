"""The registry of the nodes and other programs on a broker, from their announcements.

Every node publishes its description, status and metrics on the reserved topic ``_msight.nodes``, once each heartbeat interval,
and every other bus its busiest topics. No server keeps a list, so the registry works on every backend, and is complete after one
interval. Any client can publish on the topic, so an announcement is decoded into a bounded type, and nothing in it is imported or
evaluated.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec

from msight_bus.errors import BusError, ClosedError
from msight_bus.events import BusEvent, Disconnected, Reconnected
from msight_bus.message import Message
from msight_bus.patterns import MAX_NAMED
from msight_bus.queue_policy import QueuePolicy
from msight_bus.reporting import Reporter
from msight_bus.subscription import Subscription
from msight_bus.tasks import BackgroundTasks
from msight_bus.topic_map import TopicMap
from msight_bus.topics import ALIVE_TOPIC, NODES_TOPIC

logger = logging.getLogger("msight_bus")

MAX_NODES = 10_000
"""Maximum number of nodes, and of other programs, that a registry keeps."""

MAX_ANNOUNCEMENT_BYTES = 8192
MAX_PROGRAM_BYTES = 16_384
"""Maximum bytes of the announcement of a node, and of another program."""

MAX_PROGRAM_TOPICS = 50
"""Maximum number of topics that a program announces."""

LONGEST_INTERVAL = 3600.0
"""Maximum heartbeat interval, in seconds."""

FORGET_AFTER = 3600.0
"""Seconds for which a node stays listed after its end or loss."""

_MISSED_HEARTBEATS = 3
_ASKED_AFTER = 1.25
"""Heartbeat intervals without a heartbeat after which the broker is asked for the node's liveness subscription."""

_ASKED_TWICE = 2.0
"""Seconds between the two requests about one node."""

_TICK = 0.25
"""Seconds between two checks whether the event loop was blocked."""

_ASKED_AT_ONCE = 64
"""Maximum number of nodes for which the broker is asked at a time."""

# Shown in terminals: no control characters, no invisible and no bidirectional formatting characters.
_NAME = re.compile(r"^[A-Za-z0-9._-]{1,200}\Z")
Name = Annotated[str, msgspec.Meta(pattern=_NAME.pattern)]
Text = Annotated[
    str,
    msgspec.Meta(
        pattern="^[^\\x00-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
        "\\U000e0000-\\U000e007f]{0,200}\\Z"
    ),
]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ProcessId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class NodeStatus(StrEnum):
    """The status of a node; every value but ``LOST`` is self-reported."""

    REGISTERED = "REGISTERED"
    """The node is starting."""
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    """The node has stopped in order."""
    ERROR = "ERROR"
    """The node has ended with an error, or its handler has not responded for longer than ``heartbeat_tolerance``."""
    LOST = "LOST"
    """No heartbeat for three intervals, or for one and the broker reports no liveness subscription; set by the observer."""


class NodeMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of a node; totals are since its start.

    Attributes:
        messages_in: inputs received.
        messages_out: outputs published.
        rate_in: inputs a second over the last interval.
        rate_out: outputs a second over the last interval.
        queued: inputs in the node's queue now.
        dropped: inputs dropped by the queue, and outputs dropped while the broker was down.
        gaps, missing: gaps in the input and known missing messages; ``None`` where they are not counted.
        errors: errors in the node's code.
        undecodable: inputs that could not be decoded.
        latency_p50_ms, latency_p99_ms: milliseconds from the publish time of an input (by the publisher's clock) until the
            node's outputs were published; for a source, from receiving data until the data was published. Of the last
            interval with messages.
    """

    messages_in: Count = 0
    messages_out: Count = 0
    rate_in: Seconds = 0.0
    rate_out: Seconds = 0.0
    queued: Count = 0
    dropped: Count = 0
    gaps: Count | None = 0
    missing: Count | None = 0
    errors: Count = 0
    undecodable: Count = 0
    latency_p50_ms: Seconds | None = None
    latency_p99_ms: Seconds | None = None


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as announced.

    Attributes:
        name: the node's name; the workers of a group share the name.
        instance: random id, new at each start.
        present: whether the node holds its liveness subscription, ``_msight.alive.<instance>``.
        type: the node's class, for display.
        device: the node's device, for display.
        host: the machine's name, for display.
        status: see `NodeStatus`.
        started_at: POSIX seconds by the node's clock.
        heartbeat_interval: seconds between two announcements.
        publish_topic: the output topic.
        subscribe_topic: the input, if it is one topic or pattern.
        output, inputs: the output topic, and the first topics and patterns of the input, also where `publish_topic` and
            `subscribe_topic` are announced as ``None``, because earlier versions accept only letters, digits and ``._-`` there.
        more_inputs: number of the other topics and patterns of the input.
        group_id: from the node's configuration.
        last_heartbeat: POSIX seconds; in a registry by the observer's clock.
        ended: whether this was the node's last announcement.
        metrics: see `NodeMetrics`.
    """

    name: Name
    instance: Name
    type: Text
    device: Text
    host: Text = ""
    present: bool = False
    status: NodeStatus
    started_at: float
    heartbeat_interval: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_INTERVAL)]
    publish_topic: Name | None = None
    subscribe_topic: Name | None = None
    output: Text | None = None
    inputs: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_NAMED)] = ()
    more_inputs: Count = 0
    group_id: Name | None = None
    last_heartbeat: float = 0.0
    ended: bool = False
    metrics: NodeMetrics = NodeMetrics()

    def __post_init__(self) -> None:
        """Set the fields that earlier versions do not announce."""
        if self.output is None:
            msgspec.structs.force_setattr(self, "output", self.publish_topic)
        if not self.inputs and self.subscribe_topic is not None:
            msgspec.structs.force_setattr(self, "inputs", (self.subscribe_topic,))

    @property
    def label(self) -> str:
        """The name, for display."""
        return self.name

    @property
    def outputs(self) -> tuple[str, ...]:
        """The output topic, if there is one."""
        return () if self.output is None else (self.output,)


class ProgramTopic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A topic of a program, or a pattern to which it subscribes.

    Attributes:
        topic: the topic or pattern.
        published: whether the program has published on the topic.
        subscribed: whether the program subscribes to the topic or pattern.
        rate_out: messages a second published over the last interval.
        rate_in: messages a second received over the last interval; ``None`` if unknown, for several patterns of a subscription.
    """

    topic: Text
    published: bool = False
    subscribed: bool = False
    rate_out: Seconds = 0.0
    rate_in: Seconds | None = 0.0


class ProgramInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One bus of a program, without the nodes that run on it, as announced. Earlier versions ignore the announcement.

    Attributes:
        name: the device's name, see ``MSIGHT_EDGE_DEVICE_NAME``, or else the machine's.
        instance: random id of the bus.
        present: whether the bus holds the liveness subscription ``_msight.alive.<instance>``.
        host: the machine's name, for display.
        process: the process id.
        status: ``RUNNING``, ``STOPPED`` after the bus was closed, or ``LOST``, set by the observer.
        started_at: POSIX seconds by the program's clock.
        heartbeat_interval: seconds between two announcements.
        topics: the busiest topics, at most `MAX_PROGRAM_TOPICS`.
        more_topics: number of the other topics.
        last_heartbeat: POSIX seconds; in a registry by the observer's clock.
        ended: whether this was the last announcement.
    """

    name: Text
    instance: Name
    host: Text
    process: ProcessId
    present: bool = False
    status: NodeStatus = NodeStatus.RUNNING
    started_at: float
    heartbeat_interval: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_INTERVAL)]
    topics: Annotated[tuple[ProgramTopic, ...], msgspec.Meta(max_length=MAX_PROGRAM_TOPICS)]
    more_topics: Count = 0
    last_heartbeat: float = 0.0
    ended: bool = False

    @property
    def label(self) -> str:
        """Name and process id, for display."""
        return f"{self.name}[{self.process}]"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The topics that the program publishes on."""
        return tuple([one.topic for one in self.topics if one.published])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics and patterns to which the program subscribes."""
        return tuple([one.topic for one in self.topics if one.subscribed])


_decode_node = msgspec.json.Decoder(NodeInfo).decode
_decode_program = msgspec.json.Decoder(ProgramInfo).decode


def decode_announcement(payload: bytes) -> NodeInfo | ProgramInfo | None:
    """Decode an announcement; ``None`` if it is too large or not valid.

    LOST is set by observers only: an announced LOST is ignored.
    """
    kinds: tuple[tuple[int, Callable[[bytes], NodeInfo | ProgramInfo]], ...] = (
        (MAX_ANNOUNCEMENT_BYTES, _decode_node),
        (MAX_PROGRAM_BYTES, _decode_program),
    )
    for most, decode in kinds:
        if len(payload) <= most:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                info = decode(payload)
                if info.status is NodeStatus.LOST:
                    alive = NodeStatus.STOPPED if info.ended else NodeStatus.RUNNING
                    info = msgspec.structs.replace(info, status=alive)
                return info
    return None


def announced_topics(output: str | None, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a `NodeInfo` that describe its topics, by their names on the broker."""
    single = inputs[0] if len(inputs) == 1 else None
    return {
        "publish_topic": output if output and _NAME.match(output) else None,
        "subscribe_topic": single if single and _NAME.match(single) else None,
        "output": output,
        "inputs": tuple(inputs[:MAX_NAMED]),
        "more_inputs": max(0, len(inputs) - MAX_NAMED),
    }


class Listens(Protocol):
    """The part of `Core` that the registry uses."""

    reporter: Reporter

    def subscribe(self, topics: tuple[str, ...], *, queue: QueuePolicy | None = None) -> Subscription:
        """Subscribe; ``topics`` may be reserved topics."""

    async def has_subscribers(self, topic: str) -> bool | None:
        """Ask the broker whether a topic has subscribers; ``None`` if the broker cannot tell."""


Key = tuple[str, str]
"""Name and instance."""

InfoT = TypeVar("InfoT", NodeInfo, ProgramInfo)


class _Known(Generic[InfoT]):
    """The nodes, or the other programs, that have announced themselves.

    Attributes:
        heard: by name and instance, in the order of the last announcement: the announcement, and the times of the first and the
            last, by the observer's clock.
        gone: those without a liveness subscription, by the broker.
    """

    def __init__(self) -> None:
        self.heard: OrderedDict[Key, tuple[InfoT, float, float]] = OrderedDict()
        self.gone: set[Key] = set()

    def hear(self, info: InfoT, now: float) -> None:
        """Account for an announcement; evict the longest silent one if there are too many."""
        key = (info.name, info.instance)
        before = self.heard.get(key)
        self.heard[key] = info, now if before is None else before[1], now
        self.heard.move_to_end(key)
        self.gone.discard(key)
        if len(self.heard) > MAX_NODES:
            self.gone.discard(self.heard.popitem(last=False)[0])

    def listed(self, now: float) -> list[InfoT]:
        """Return all with their status, sorted by name; forget those that ended or were lost long ago, or are replaced."""
        shown: list[InfoT] = []
        later: dict[tuple[str, str], float] = {}  # when the latest one of this name and host was first heard
        for info, first, _ in self.heard.values():
            later[info.name, info.host] = max(first, later.get((info.name, info.host), first))
        for key, (info, _, heard_at) in list(self.heard.items()):
            silent = now - heard_at
            lost = not info.ended and (key in self.gone or silent > _MISSED_HEARTBEATS * info.heartbeat_interval)
            replaced = lost and info.host and later[info.name, info.host] > heard_at
            old = (lost or info.ended) and silent > max(FORGET_AFTER, _MISSED_HEARTBEATS * info.heartbeat_interval)
            if replaced or old:
                del self.heard[key]
                self.gone.discard(key)
            else:
                shown.append(msgspec.structs.replace(info, status=NodeStatus.LOST) if lost else info)
        return sorted(shown, key=lambda info: (info.name, info.started_at, info.instance))

    def late(self, now: float, quiet_until: float) -> list[Key]:
        """Return those whose heartbeat is late and for which the broker can be asked, at most `_ASKED_AT_ONCE`."""
        late: list[Key] = []
        for key, (info, _, heard_at) in self.heard.items():
            silent = now - max(heard_at, quiet_until)
            if silent > _ASKED_AFTER * info.heartbeat_interval and info.present and not info.ended:
                late.append(key)
        return [key for key in late if key not in self.gone][:_ASKED_AT_ONCE]

    @property
    def shortest_interval(self) -> float:
        """The shortest heartbeat interval, in seconds, at most 1."""
        return min((info.heartbeat_interval for info, _, _ in self.heard.values()), default=1.0)


class Registry:
    """The nodes on a broker: ``registry = await bus.nodes()``, then iterate it at any time; `programs` are the others.

    Awaiting the registry subscribes to the announcements and returns once the broker has confirmed. Otherwise the first read
    inside a running event loop subscribes in the background.

    Attributes:
        ignored: number of announcements that could not be decoded.
    """

    def __init__(
        self, bus: Listens, *, clock: Callable[[], float] | None = None, topic_map: TopicMap | None = None
    ) -> None:
        """``clock`` returns seconds, for the age of heartbeats; default: the running event loop's clock. ``topic_map``: topics
        that have other names on the broker."""
        self.ignored = 0
        self._bus = bus
        self._topic_map = topic_map or TopicMap()
        self._clock = _loop_clock() if clock is None else clock
        self._nodes: _Known[NodeInfo] = _Known()
        self._programs: _Known[ProgramInfo] = _Known()
        self._quiet_until = 0.0
        self._blocked = 0.0  # seconds for which the event loop was blocked
        self._blocked_now = _not_blocked
        self._tasks = BackgroundTasks()
        self._task: asyncio.Task[None] | None = None
        self._confirmed: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._closed = False

    # -- reading

    def __iter__(self) -> Iterator[NodeInfo]:
        """Iterate the nodes known now, sorted by name."""
        return iter(self._snapshot())

    def __len__(self) -> int:
        return len(self._snapshot())

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return any(info.name == name for info in self._snapshot())

    def __getitem__(self, name: str) -> NodeInfo:
        """Return the node with this name; of several instances, the one with the latest heartbeat.

        Raises:
            KeyError: no node with this name is known.
        """
        found = self.instances(name)
        if not found:
            raise KeyError(name)
        return max(found, key=lambda info: info.last_heartbeat)

    def instances(self, name: str) -> tuple[NodeInfo, ...]:
        """Return every node with this name: the workers of a group, and for `FORGET_AFTER` seconds earlier runs."""
        return tuple(info for info in self._snapshot() if info.name == name)

    @property
    def programs(self) -> tuple[ProgramInfo, ...]:
        """The buses of programs known now, without nodes, sorted by name; their topics are at most `MAX_PROGRAM_TOPICS` each."""
        self._start_in_background()
        return tuple(self._programs.listed(self._time()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{info.name} {info.status}" for info in self._now())
        return f"Registry({shown})"

    async def wait_until(self, condition: Callable[[Registry], bool]) -> None:
        """Wait until ``condition(registry)`` is true; evaluated again at each announcement.

        Raises:
            ClosedError: the registry was closed.
            BusError: the subscription failed.
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

    def _time(self) -> float:
        """Return the observer's time without the time in which its event loop was blocked: heartbeats wait in the socket."""
        return self._clock() - self._blocked - self._blocked_now()

    async def _measure_blocking(self) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        self._blocked_now = lambda: max(0.0, loop.time() - due)
        try:
            while True:
                due = loop.time() + _TICK
                await asyncio.sleep(_TICK)
                self._blocked += self._blocked_now()
        finally:
            self._blocked_now = _not_blocked

    def _now(self) -> list[NodeInfo]:
        return self._nodes.listed(self._time())

    # -- subscribing

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
            return  # no running event loop to subscribe on
        self._start()

    def _start(self) -> asyncio.Future[None]:
        confirmed = self._confirmed = asyncio.get_running_loop().create_future()
        self._task = self._tasks.start(lambda: self._listen(confirmed), "registry")
        return confirmed

    # -- liveness

    async def _ask(self) -> None:
        """Ask the broker, twice, for the liveness subscriptions of those whose heartbeat is late, until cancelled."""
        self._bus.reporter.listeners.append(self._on_event)
        try:
            while True:
                absent = await self._absent(self._late())
                if absent:
                    await asyncio.sleep(_ASKED_TWICE)
                    late = self._late()
                    for known, key in await self._absent([one for one in absent if one in late]):
                        known.gone.add(key)
                    self._notify()
                shortest = min(self._nodes.shortest_interval, self._programs.shortest_interval)
                await asyncio.sleep(min(1.0, max(_TICK, shortest / 4)))
        finally:
            self._bus.reporter.listeners.remove(self._on_event)

    def _late(self) -> list[tuple[_Known[Any], Key]]:
        """Return those whose heartbeat is late; none shortly after a reconnect of this observer, which missed heartbeats."""
        now = self._time()
        return [(known, key) for known in (self._nodes, self._programs) for key in known.late(now, self._quiet_until)]

    async def _absent(self, late: list[tuple[_Known[Any], Key]]) -> list[tuple[_Known[Any], Key]]:
        """Return those without a liveness subscription."""
        found = await asyncio.gather(*(self._bus.has_subscribers(ALIVE_TOPIC + key[1]) for _, key in late))
        return [one for one, present in zip(late, found, strict=True) if present is False]

    def _on_event(self, event: BusEvent) -> None:
        if isinstance(event, Disconnected | Reconnected):
            self._quiet_until = self._time()

    async def _listen(self, confirmed: asyncio.Future[None]) -> None:
        try:
            # A dropped heartbeat is replaced by the next one, so publishers need not wait for this subscription.
            subscription = self._bus.subscribe((NODES_TOPIC,), queue=QueuePolicy.drop_oldest(MAX_NODES))
            async with subscription as announcements:
                if not confirmed.done():
                    confirmed.set_result(None)
                tasks = [
                    asyncio.create_task(self._ask(), name="msight_bus registry presence"),
                    asyncio.create_task(self._measure_blocking(), name="msight_bus registry time"),
                ]
                try:
                    async for batch in announcements.batches(256):
                        for message in batch:
                            self._observe(message)
                        self._notify()
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
        except BusError as error:
            if not self._closed:
                logger.warning("Registry subscription failed: %s", error)
            _fail(confirmed, error)
        finally:
            _fail(confirmed, ClosedError("The registry is closed."))
            self._notify()

    def _observe(self, message: Message) -> None:
        info = decode_announcement(message.payload)
        # Measure the age of a heartbeat by this machine's clock: the sender's clock may be wrong.
        now = self._time()
        here = self._topic_map.here
        if isinstance(info, NodeInfo):
            output = info.output and (here(info.output) or info.output)
            inputs = tuple(here(entry) or entry for entry in info.inputs)
            info = msgspec.structs.replace(
                info,
                last_heartbeat=message.received_at,
                publish_topic=output,
                output=output,
                subscribe_topic=inputs[0] if len(inputs) == 1 and not info.more_inputs else None,
                inputs=inputs,
            )
            self._nodes.hear(info, now)
        elif info is not None:
            topics = tuple([msgspec.structs.replace(one, topic=here(one.topic) or one.topic) for one in info.topics])
            self._programs.hear(msgspec.structs.replace(info, last_heartbeat=message.received_at, topics=topics), now)
        else:
            self.ignored += 1

    def _notify(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    async def close(self) -> None:
        """Unsubscribe; the known nodes and programs stay readable."""
        self._closed = True
        await self._tasks.stop()


def _loop_clock() -> Callable[[], float]:
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic


def _not_blocked() -> float:
    return 0.0


def _fail(confirmed: asyncio.Future[None], error: BusError) -> None:
    if not confirmed.done():
        confirmed.set_exception(error)
        confirmed.exception()  # marks the exception as retrieved: no task may be waiting
