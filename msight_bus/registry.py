"""The registry of the nodes and other programs on a broker, from their announcements.

Every node publishes its description, status and metrics on the reserved topic ``_msight.nodes``, once each heartbeat interval,
and every other bus publishes its busiest topics (`announcements`). No server keeps a list, so the registry works on every
backend, and is complete after one interval.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import msgspec

from msight_bus.announcements import NodeInfo, ProgramInfo, decode_announcement
from msight_bus.core import Core
from msight_bus.errors import BusError, ClosedError
from msight_bus.events import BusEvent, Disconnected, Reconnected
from msight_bus.known_programs import MAX_NODES, Key, Known
from msight_bus.message import Message
from msight_bus.queue_policy import QueuePolicy
from msight_bus.runtime import running_loop
from msight_bus.tasks import BackgroundTasks, await_shared
from msight_bus.topic_map import TopicMap
from msight_bus.topics import ALIVE_TOPIC, NODES_TOPIC

logger = logging.getLogger("msight_bus")

_ASKED_TWICE = 2.0
"""Seconds between the two requests about one node."""

_CLOSED = "The registry is closed; call `await bus.nodes()` for another one."

_TICK = 0.25
"""Seconds between two checks whether the event loop was blocked."""


class Registry:
    """The nodes on a broker: ``registry = await bus.nodes()``, then iterate it at any time; `programs` are the others.

    Awaiting the registry subscribes to the announcements and returns once the broker has confirmed. Otherwise the first read
    inside a running event loop subscribes in the background.

    Attributes:
        ignored: number of announcements that could not be decoded.
    """

    def __init__(
        self, bus: Core, *, clock: Callable[[], float] | None = None, topic_map: TopicMap | None = None
    ) -> None:
        """
        Args:
            bus: subscribes to the announcements and asks the broker for subscribers.
            clock: returns seconds, for the age of heartbeats; default: the running event loop's clock.
            topic_map: topics that have other names on the broker.
        """
        self.ignored = 0
        self._bus = bus
        self._topic_map = topic_map or TopicMap()
        loop = running_loop()
        self._clock = clock or (time.monotonic if loop is None else loop.time)
        self._nodes: Known[NodeInfo] = Known()
        self._programs: Known[ProgramInfo] = Known()
        self._quiet_until = 0.0
        self._blocked = 0.0  # seconds for which the event loop was blocked
        self._blocked_now: Callable[[], float] = lambda: 0.0
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
                raise ClosedError(_CLOSED)
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
            self._blocked_now = lambda: 0.0

    def _now(self) -> list[NodeInfo]:
        return self._nodes.listed(self._time())

    # -- subscribing

    def __await__(self) -> Generator[object, None, Registry]:
        return self._listening().__await__()

    async def _listening(self) -> Registry:
        if self._closed:
            raise ClosedError(_CLOSED)
        confirmed = self._confirmed
        if confirmed is None or self._task is None or self._task.done():
            confirmed = self._start()
        await await_shared(confirmed)
        return self

    def _start_in_background(self) -> None:
        if self._confirmed is None and not self._closed and running_loop() is not None:
            self._start()

    def _start(self) -> asyncio.Future[None]:
        confirmed = self._confirmed = asyncio.get_running_loop().create_future()
        self._task = self._tasks.start(lambda: self._listen(confirmed), "registry")
        return confirmed

    # -- liveness

    async def _ask(self) -> None:
        """Ask the broker twice for the liveness subscription of each late node and program; run until cancelled."""
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

    def _late(self) -> list[tuple[Known[Any], Key]]:
        """Return the keys of nodes and programs whose heartbeat is late; none shortly after this observer has reconnected."""
        now = self._time()
        return [(known, key) for known in (self._nodes, self._programs) for key in known.late(now, self._quiet_until)]

    async def _absent(self, late: list[tuple[Known[Any], Key]]) -> list[tuple[Known[Any], Key]]:
        """Return the keys of ``late`` for which the broker reports no liveness subscription."""
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
        topic_of = self._topic_map.topic_of
        if isinstance(info, NodeInfo):
            output = info.output and topic_of(info.output)
            inputs = tuple(topic_of(entry) for entry in info.inputs)
            sent_at = info.last_heartbeat
            info = msgspec.structs.replace(
                info,
                last_heartbeat=message.received_at,
                publish_topic=output,
                output=output,
                subscribe_topic=inputs[0] if len(inputs) == 1 and not info.more_inputs else None,
                inputs=inputs,
            )
            self._nodes.hear(info, now, sent_at)
        elif info is not None:
            topics = tuple([msgspec.structs.replace(one, topic=topic_of(one.topic)) for one in info.topics])
            heard = msgspec.structs.replace(info, last_heartbeat=message.received_at, topics=topics)
            self._programs.hear(heard, now, info.last_heartbeat)
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


def _fail(confirmed: asyncio.Future[None], error: BusError) -> None:
    if not confirmed.done():
        confirmed.set_exception(error)
        confirmed.exception()  # marks the exception as retrieved: no task may be waiting
