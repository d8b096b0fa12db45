"""Announces the bus of a program: its name, host, process and busiest topics, on the reserved topic of the nodes.

Rates are measured with the sequences of published topics and the counters of subscriptions: a message costs nothing more.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec

from msight_bus.announcements import MAX_PROGRAM_BYTES, MAX_PROGRAM_TOPICS, NodeStatus, ProgramInfo, ProgramTopic
from msight_bus.backends.base import BLOCKED, Outcome, PresenceBackend, TopicPublisher
from msight_bus.core import Core
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.events import BusEvent, Reconnected
from msight_bus.heartbeat_sender import hold_liveness_subscription, printable
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.subscription import Subscription
from msight_bus.tasks import BackgroundTasks
from msight_bus.topics import NODES_TOPIC

logger = logging.getLogger("msight_bus")

T = TypeVar("T")

INTERVAL = 10.0
"""Seconds between two announcements."""

FIRST_AFTER = 1.0
"""Seconds for which the rates of the first announcement are measured, and the first interval at which the bus is polled for use.
The first announcement follows within `INTERVAL` of the first publish or subscribe; a bus closed earlier is not announced."""

_END_WITHIN = 1.0
"""Deadline of the last announcement, in seconds."""

_A_TURN = 2000
"""Maximum number of topics measured in one event loop iteration."""

_RESERVED = "_msight."


class ProgramAnnouncer:
    """The announcements of one bus, without the nodes that run on it, which announce themselves.

    A topic on which a node of the bus publishes or has published is not announced. The first publish or subscribe outside the
    nodes starts the announcements, on Kafka only if the topic ``_msight.nodes`` exists. Errors are logged, never raised.
    """

    def __init__(self, core: Core) -> None:
        """Begin to announce ``core``, which is open."""
        self._core = core
        self._tasks = BackgroundTasks()
        self._measured_at = asyncio.get_running_loop().time()
        self._publisher: TopicPublisher | None = None
        self._refused = False
        self._liveness_refused = False
        self._info = ProgramInfo(
            name=printable(core.name),
            instance=secrets.token_hex(8),
            host=printable(socket.gethostname()),
            process=os.getpid(),
            started_at=core.clock(),
            heartbeat_interval=INTERVAL,
            topics=(),
        )
        self._announced = False
        core.before_disconnecting.append(self._end)
        self._tasks.start(self._run, "program announcements")

    async def _run(self) -> None:
        pause = FIRST_AFTER
        while not self._is_used():
            await asyncio.sleep(pause)
            pause = min(2 * pause, max(FIRST_AFTER, INTERVAL - 2 * FIRST_AFTER))
        await self._busiest()  # begins to measure rates
        await asyncio.sleep(FIRST_AFTER)
        while True:
            topics, others = await self._busiest()
            await self._hold_liveness_subscription()
            self._info = msgspec.structs.replace(self._info, topics=topics, more_topics=others)
            await self._announce()
            await asyncio.sleep(INTERVAL)

    # -- the announced topics

    def _is_used(self) -> bool:
        """Return whether the bus has published or subscribed outside its nodes."""
        return any(map(self._is_published, self._core.backend.published)) or any(self._subscribed())

    def _is_published(self, counter: TopicCounter) -> bool:
        name = counter.topic
        return counter.sequence > 0 and not name.startswith(_RESERVED) and name not in self._core.node_topics

    def _subscribed(self) -> Iterator[Subscription[Any]]:
        """Yield the subscriptions of the bus, without those of nodes and those to reserved topics."""
        of_nodes = {drainable.subscription for drainable in self._core.drainables}
        for subscription in list(self._core.subscriptions):
            if subscription not in of_nodes and not subscription.topics[0].startswith(_RESERVED):
                yield subscription

    async def _busiest(self) -> tuple[tuple[ProgramTopic, ...], int]:
        """Return the topics with the most messages since the last call, the busiest first, and the number of the others."""
        core = self._core
        now = asyncio.get_running_loop().time()
        seconds, self._measured_at = max(now - self._measured_at, 1e-3), now
        received: dict[str, tuple[int, bool]] = {}  # messages, and whether that is the number of this topic
        async for entries in _in_turns(self._received()):
            for name, count, exact in entries:
                others, others_exact = received.get(name, (0, True))
                received[name] = count + others, exact and others_exact
        busiest: list[_Measured] = []
        number = 0
        published = set()
        async for counters in _in_turns(core.backend.published):
            measured: list[_Measured] = []
            for counter in counters:
                sent, counter.measured = counter.sequence - counter.measured, counter.sequence
                if self._is_published(counter):
                    name = printable(counter.topic)
                    measured.append((-sent - received.get(name, (0, True))[0], name, sent))
                    if name in received:
                        published.add(name)
            number += len(measured)
            busiest = heapq.nsmallest(MAX_PROGRAM_TOPICS, [*busiest, *measured])
        silent = [(-count, name, None) for name, (count, _) in received.items() if name not in published]
        number += len(silent)
        busiest = heapq.nsmallest(MAX_PROGRAM_TOPICS, [*busiest, *silent], key=lambda one: one[:2])
        topics = tuple([_topic(name, sent, received.get(name), seconds) for _, name, sent in busiest])
        return topics, number - len(topics)

    def _received(self) -> Iterator[tuple[str, int, bool]]:
        """Yield the topics and patterns of the subscriptions, by their names on the broker."""
        for subscription in self._subscribed():
            for entry, count, exact in subscription.measure():
                yield printable(self._core.on_broker(entry)), count, exact

    # -- liveness

    async def _hold_liveness_subscription(self) -> None:
        """Subscribe to the liveness topic of the bus, on a connection that is open anyway."""
        backend = self._core.backend
        if self._info.present or self._liveness_refused or not isinstance(backend, PresenceBackend):
            return
        if backend.can_subscribe:
            decided = asyncio.Event()
            self._tasks.start(lambda: self._hold(decided), "program presence")
            await decided.wait()

    async def _hold(self, decided: asyncio.Event) -> None:
        def confirmed() -> None:
            self._set_present(True)
            decided.set()

        try:
            await hold_liveness_subscription(self._core, self._info.instance, confirmed)
        except AuthenticationError as error:
            self._liveness_refused = True
            self._core.reporter.listeners.append(self._on_event)
            logger.info(
                "No liveness subscription; observers detect a loss of this program by missed heartbeats only: %s", error
            )
        except BusError as error:
            logger.debug("No liveness subscription: %s", error)
        finally:
            self._set_present(False)
            decided.set()

    def _set_present(self, present: bool) -> None:
        self._info = msgspec.structs.replace(self._info, present=present)

    # -- publishing

    async def _announce(self) -> None:
        """Publish an announcement, unless the broker has refused one on this connection."""
        if self._refused:
            return
        try:
            if (outcome := await self._send()) is not None:
                await self._core.acknowledged(NODES_TOPIC, outcome)
        except AuthenticationError as error:
            self._not_permitted(error)
        except BusError as error:
            logger.debug("Program not announced: %s", error)
        else:
            self._announced = True

    async def _send(self) -> Outcome:
        core = self._core
        if self._publisher is None:
            creates = bool(core.drainables)  # the nodes of the bus create the topic
            self._publisher = core.backend.publisher(NODES_TOPIC, core.publisher_name, keeps=False, creates=creates)
            self._publisher.on_refused = lambda error, _: self._not_permitted(error)
        payload = self._encoded()
        outcome = self._publisher.try_send(payload, None, None)
        return await self._publisher.send(payload, None, None) if outcome is BLOCKED else outcome

    def _encoded(self) -> bytes:
        """Encode the announcement, with as many topics as fit."""
        info = msgspec.structs.replace(self._info, last_heartbeat=self._core.clock())
        while len(payload := msgspec.json.encode(info)) > MAX_PROGRAM_BYTES:
            topics = info.topics[: -(len(info.topics) // 10) - 1]
            more = info.more_topics + len(info.topics) - len(topics)
            info = msgspec.structs.replace(info, topics=topics, more_topics=more)
        return payload

    def _not_permitted(self, error: BusError) -> None:
        if not self._refused:
            self._refused = True
            self._core.reporter.listeners.append(self._on_event)
            logger.info(
                "Program announcements stopped until the next reconnect; permit publishing on %s, or set "
                "MSIGHT_ANNOUNCE=false: %s",
                NODES_TOPIC,
                error,
            )

    def _on_event(self, event: BusEvent) -> None:
        """Try again on the next connection what the broker has refused."""
        if isinstance(event, Reconnected) and self._on_event in self._core.reporter.listeners:
            self._core.reporter.listeners.remove(self._on_event)
            self._refused = self._liveness_refused = False

    async def _end(self) -> None:
        """Announce the end of the bus, if the bus was announced."""
        await self._tasks.stop()
        if self._announced and not self._refused and self._core.backend.is_connected:
            self._info = msgspec.structs.replace(self._info, status=NodeStatus.STOPPED, ended=True)
            try:
                async with asyncio.timeout(_END_WITHIN):
                    outcome = await self._send()
            except (TimeoutError, BusError) as error:
                logger.debug("End of the program not announced: %s", error)
            else:
                if outcome is not None:  # the backend flushes when it closes
                    outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._publisher is not None:
            self._publisher.close()


_Measured = tuple[int, str, int | None]
"""The negative number of messages, the topic, and the number of messages published; ``None`` if the program publishes none."""


def _topic(name: str, sent: int | None, received: tuple[int, bool] | None, seconds: float) -> ProgramTopic:
    count, exact = received or (0, True)
    return ProgramTopic(
        topic=name,
        published=sent is not None,
        subscribed=received is not None,
        rate_out=round((sent or 0) / seconds, 3),
        rate_in=round(count / seconds, 3) if exact else None,
    )


async def _in_turns(items: Iterator[T]) -> AsyncIterator[list[T]]:
    """Yield the items in lists, each in another event loop iteration."""
    while turn := list(islice(items, _A_TURN)):
        yield turn
        await asyncio.sleep(0)
