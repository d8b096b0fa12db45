"""Completion of topics and nodes in the shell: queries the broker for at most 1 s, and offers nothing on an error."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from contextlib import suppress

import typer

from msight_bus.bus import Bus, connect
from msight_bus.doctor.checks import topics_of
from msight_bus.errors import BusError, TopicError
from msight_bus.queue_policy import QueuePolicy
from msight_bus.runtime import bounded_shutdown, run
from msight_bus.settings import BusSettings
from msight_bus.topics import check_topic

_WITHIN = 1.0
"""Seconds for connecting and asking."""

_LISTENING = 0.5
"""Seconds for which messages and announcements are received."""

_MOST_BYTES = 32_000_000
"""Bytes of messages after which no more are received."""

_MOST_NAMES = 1000


class Names:
    """The names of topics and nodes on a broker, without names with characters that a shell interprets."""

    def __init__(self, incomplete: str) -> None:
        """
        Args:
            incomplete: the beginning of the names.
        """
        self._incomplete = incomplete
        self.topics: set[str] = set()
        self.nodes: set[str] = set()

    def add_topic(self, name: str) -> None:
        """Add a topic that begins with ``incomplete``, unless its name is not valid, is reserved, or begins as an option does."""
        with suppress(TopicError):
            if len(self.topics) < _MOST_NAMES and self._is_wanted(name):
                self.topics.add(check_topic(name))

    def _is_wanted(self, name: str) -> bool:
        return name.startswith(self._incomplete) and not name.startswith("-")

    async def ask(self, settings: BusSettings) -> None:
        """Ask a broker for topics and nodes; after `_WITHIN` seconds, the names are those known until then."""
        async with bounded_shutdown():
            asking = asyncio.create_task(self._ask(settings))
            await asyncio.wait((asking,), timeout=_WITHIN)
            if asking.done():
                asking.exception()  # marks the exception as retrieved

    async def _ask(self, settings: BusSettings) -> None:
        async with connect(settings) as bus:
            sources = [self._ask_broker(settings), self._read_nodes(bus)]
            if not bus.capabilities.persistence:  # a log lists its topics
                sources.append(self._observe(bus))
            await asyncio.gather(*sources, return_exceptions=True)

    async def _ask_broker(self, settings: BusSettings) -> None:
        for name in await topics_of(settings):
            self.add_topic(settings.topic_map.topic_of(name))

    async def _read_nodes(self, bus: Bus) -> None:
        registry = await bus.nodes()
        try:
            await asyncio.sleep(_LISTENING)
        finally:
            for info in registry:
                if len(self.nodes) < _MOST_NAMES and self._is_wanted(info.name):
                    self.nodes.add(info.name)
                for topic in filter(None, (info.output, *info.inputs)):
                    self.add_topic(topic)  # a pattern is not a valid topic

    async def _observe(self, bus: Bus) -> None:
        received = 0
        async with asyncio.timeout(_LISTENING), bus.core.subscribe((">",), queue=QueuePolicy.drop_oldest()) as messages:
            async for message in messages:
                self.add_topic(message.topic)
                received += len(message.payload)
                if received > _MOST_BYTES:
                    return


def _names(backend: str | None, incomplete: str) -> Names:
    names = Names(incomplete)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # a log line would stand in the command line that is being typed
    try:
        with warnings.catch_warnings(), suppress(BusError):
            warnings.simplefilter("ignore")
            variables = {"MSIGHT_KAFKA_CREATE_TOPICS": "false", "MSIGHT_ANNOUNCE": "false"}
            variables["MSIGHT_CONNECT_TIMEOUT"] = f"{_WITHIN:g}"
            settings = BusSettings(environ={**os.environ, **variables}, backend=backend)
            if settings.backend != "memory":
                run(names.ask(settings))
    finally:
        logging.disable(disabled)
    return names


def _not_given(names: set[str], context: typer.Context) -> list[str]:
    given = context.params.get("topics") or ()
    return sorted(name for name in names if name not in given)


def complete_topics(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the topics that begin with ``incomplete``."""
    return _not_given(_names(ctx.params.get("backend"), incomplete).topics, ctx)


def complete_nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the nodes and topics that begin with ``incomplete``."""
    names = _names(ctx.params.get("backend"), incomplete)
    return _not_given(names.nodes | names.topics, ctx)


def complete_backends(incomplete: str) -> list[str]:
    """Return the backends of brokers that begin with ``incomplete``."""
    return [name for name in ("redis", "nats", "kafka") if name.startswith(incomplete)]
