"""Read topics for display: without a group, without creating topics, and within bounded memory. And the shared options."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from msight_bus.backends.base import Start
from msight_bus.bus import Bus, connect
from msight_bus.cli.completion import complete_backends, complete_topics
from msight_bus.cli.exit_status import FAILED, NOT_REACHED
from msight_bus.errors import AuthenticationError, ConfigError, ConnectionLostError, TopicError
from msight_bus.events import BusEvent, Disconnected
from msight_bus.message import Message
from msight_bus.patterns import TopicPattern, check_entries, is_pattern
from msight_bus.queue_policy import DEFAULT_BYTES, DEFAULT_MESSAGES, QueuePolicy
from msight_bus.registry import Registry
from msight_bus.runtime import run
from msight_bus.settings import BusSettings
from msight_bus.subscription import Subscription
from msight_bus.subscription.stats import TopicStats
from msight_bus.topics import NODES_TOPIC

_PATTERNS = "Topics and patterns: `*` stands for one part of a name, `>` at the end for the remaining parts."
TopicsArgument = Annotated[list[str], typer.Argument(help=_PATTERNS, autocompletion=complete_topics)]
BackendOption = Annotated[
    str | None,
    typer.Option(help="redis, nats or kafka; unset: MSIGHT_PUBSUB_BACKEND.", autocompletion=complete_backends),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
SecondsOption = Annotated[float | None, typer.Option(min=0.01, max=1e9, help="End after this many seconds.")]
CountOption = Annotated[int | None, typer.Option(min=1, help="End after this many messages.")]

SILENT = {"MSIGHT_ANNOUNCE": "false"}
"""The variables of commands that do not announce themselves."""

READING = {**SILENT, "MSIGHT_KAFKA_CREATE_TOPICS": "false"}
"""The variables of commands that only read."""

_SLICE = 0.02
"""Seconds of display after which the event loop gets as much time to read. A full queue drops messages, and the broker does not
close the connection as that of a slow reader."""

_RETRY = 1.0
_HINT_AFTER = 3


def overridden(backend: str | None, variables: Mapping[str, str]) -> BusSettings:
    """Return the settings; ``variables`` override the environment.

    Raises:
        ConfigError: the settings are wrong, including those that ``variables`` override.
    """
    settings = BusSettings(backend=backend)
    if not variables:
        return settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same as above
        return BusSettings(environ={**os.environ, **variables}, backend=backend)


def settings_of(backend: str | None, variables: Mapping[str, str]) -> BusSettings:
    """Return the settings of a command that exchanges messages with other programs; ``variables`` override the environment.

    Raises:
        ConfigError: as `overridden`, or the settings select the memory backend.
    """
    settings = overridden(backend, variables)
    if settings.backend == "memory":
        raise ConfigError(
            "The memory backend connects tasks of one process; this command needs --backend redis, nats or kafka."
        )
    return settings


class Output(Console):
    """Standard output. A closed pipe, as of ``| head``, raises an error, so that the bus is closed."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise the error, on which the command exits silently; the base class would exit inside of a task."""
        raise BrokenPipeError(errno.EPIPE, "The pipe is closed.")


def note(text: str) -> None:
    """Print a line about the display to standard error."""
    Console(stderr=True, highlight=False).print(Text(text, style="yellow"), soft_wrap=True)


async def registry_of(bus: Bus) -> Registry | None:
    """Return the registry; ``None`` if Kafka does not have the topic of the announcements.

    Raises:
        BusError: the broker refused the subscription.
    """
    try:
        async with bus.core.subscribe((NODES_TOPIC,), queue=QueuePolicy.latest()):
            return await bus.nodes()
    except TopicError:
        return None


async def registry_if_permitted(bus: Bus) -> Registry | None:
    """Return the registry (`registry_of`); print a note and return ``None`` if the broker refused the subscription."""
    try:
        return await registry_of(bus)
    except AuthenticationError as error:
        note(f"Nodes and programs are not shown: {error}")
        return None


@dataclass
class Observation:
    """Messages of topics and patterns, for display.

    Attributes:
        bus: the bus.
        receive: called with each message.
        show: called with this observation once a second and, with ``True``, at the end.
        until: called with this observation after each message; returns whether to end.
        on_drop: called with each message that arrived too fast to be read.
        start: where to begin; with ``"earliest"``, records stay in the log until they are read, and none is dropped.
        received: number of messages received, without announcements of nodes and programs.
        subscriptions: the subscriptions that were entered.
        was_disconnected: whether the bus was disconnected in the meantime.
    """

    bus: Bus
    receive: Callable[[Message], None]
    show: Callable[[Observation, bool], None] = lambda *_: None
    until: Callable[[Observation], bool] = lambda _: False
    on_drop: Callable[[Message], None] = lambda _: None
    start: Start = "latest"
    received: int = 0
    subscriptions: list[Subscription] = field(default_factory=list)
    was_disconnected: bool = False

    @property
    def failure(self) -> int:
        """The exit status if too few messages arrived."""
        return NOT_REACHED if self.was_disconnected else FAILED

    @property
    def counters(self) -> dict[str, TopicStats]:
        """The counters of each topic."""
        return {topic: stats for one in self.subscriptions for topic, stats in one.stats.topics.items()}

    def dropped(self, cause: str) -> int:
        """Return the number of messages that were dropped for a cause (`SubscriptionStats.dropped`)."""
        return sum([subscription.stats.dropped.get(cause, 0) for subscription in self.subscriptions])

    async def run(self, topics: Sequence[str], seconds: float | None) -> None:
        """Receive messages until ``seconds`` have passed since the broker confirmed; a topic that does not exist is waited for.

        A connection that is lost in the meantime is waited for.

        Raises:
            BusError: the broker refused a subscription, or the bus will not reconnect.
        """
        patterns = tuple(topic for topic in topics if is_pattern(topic))
        matchers = [TopicPattern(pattern, self.bus.settings.dead_letter_suffix) for pattern in patterns]
        named = [(one,) for one in topics if one not in patterns and not any(match.matches(one) for match in matchers)]
        entries = [patterns, *named] if patterns else named  # a topic that does not exist yet is waited for alone
        policy = QueuePolicy.block if self.start == "earliest" else QueuePolicy.drop_oldest
        queue = policy(DEFAULT_MESSAGES, max_bytes=DEFAULT_BYTES // max(1, len(entries)) or 1)
        ready = [asyncio.Event() for _ in entries]
        work = [self._keep_time(", ".join(one for one in topics if one != NODES_TOPIC), ready, seconds)]
        work += [self._read(one, queue, is_ready) for one, is_ready in zip(entries, ready, strict=True)]
        tasks = [asyncio.create_task(one) for one in work]
        listeners = self.bus.core.reporter.listeners
        listeners.append(self._on_event)
        try:
            for task in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
                task.result()
        finally:
            listeners.remove(self._on_event)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_event(self, event: BusEvent) -> None:
        self.was_disconnected = self.was_disconnected or isinstance(event, Disconnected)

    async def _read(self, topics: tuple[str, ...], queue: QueuePolicy, ready: asyncio.Event) -> None:
        loop, start = asyncio.get_running_loop(), self.start
        is_missing = False
        while True:
            try:
                async with self.bus.core.subscribe(topics, queue=queue, start=start, on_drop=self._dropped) as messages:
                    is_missing = False
                    self.subscriptions.append(messages)
                    ready.set()
                    held = 0.0
                    async for message in messages:
                        begun = loop.time()
                        self.received += message.topic != NODES_TOPIC
                        self.receive(message)
                        if self.until(self):
                            return
                        held += loop.time() - begun
                        if held > _SLICE:
                            await asyncio.sleep(held)
                            held = 0.0
            except TopicError as error:
                if not ready.is_set():
                    note(f"The topic {error.topic} does not exist on {self.bus.settings.address}; waiting for it.")
                ready.set()
                start = "earliest"  # of a topic that is created from now on, everything is shown
                is_missing = True
            except ConnectionLostError:
                if not is_missing:
                    raise
            await asyncio.sleep(_RETRY)

    def _dropped(self, messages: Sequence[Message], cause: str) -> None:
        if cause != "closed":
            for message in messages:
                self.on_drop(message)

    async def _keep_time(self, names: str, ready: Sequence[asyncio.Event], seconds: float | None) -> None:
        for event in ready:
            await event.wait()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for second in itertools.count(1):
            due = float(second) if seconds is None else min(second, seconds)
            await asyncio.sleep(begun + due - loop.time())
            if due == seconds:
                return
            if second == _HINT_AFTER and names and not self.received:
                shown = "any topic" if names == ">" else names
                note(f"No message on {shown} yet; waiting. `msight-bus topics` lists the announced topics.")
            self.show(self, False)


def watch(
    settings: BusSettings, topics: Sequence[str], seconds: float | None, observing: Callable[[Bus], Observation]
) -> Observation:
    """Connect and run an observation; show and return the observation at the end, even after Ctrl-C.

    Raises:
        TopicError: a topic or pattern is not valid.
        BusError: the broker cannot be reached, at the start or at the end, or refused the connection or a subscription.
    """

    async def observe() -> Observation:
        async with connect(settings) as bus:
            observation = observing(bus)
            try:
                await observation.run(topics, seconds)
            finally:
                observation.show(observation, True)
            await bus.core.backend.ping()
            return observation

    check_entries(list(topics))
    return run(observe())
