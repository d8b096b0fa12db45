"""What a node's code gives to be published, and how it is handed to the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from msight_bus.data import Data
from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ClosedError,
    ConnectionLostError,
    MessageTooLargeError,
    PayloadError,
    PublishTimeoutError,
)
from msight_bus.nodes.life import Life
from msight_bus.payload import Payload
from msight_bus.publisher import Publisher

BROKER_AWAY = (PublishTimeoutError, ConnectionLostError)
"""Not the fault of a node's code, and it passes: a node outlasts it."""

BUS_IS_OVER = (ClosedError, ConnectionLostError)
"""Raised by an `Outlet`: the bus was closed, or has given up reconnecting. Nothing can be published any more."""

_RETRY_AFTER = 0.1  # seconds; a publish that finds no broker has waited ``publish_timeout`` already


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An output with more than a payload: ``return Outgoing(track, key=track.sensor_name)``.

    Attributes:
        data: bytes-like or a ``Data`` value.
        key: outputs with one key keep their order; on Kafka, those of different keys can be shared by a group.
        headers: text that travels beside the payload.
    """

    data: Payload
    key: str | None = None
    headers: Mapping[str, str] | None = None


Output = Payload | Outgoing


def as_outputs(result: object, kind: type[Data] | None) -> list[Outgoing]:
    """What a node's code returned, as a list.

    Args:
        result: ``None``, one output, or a list or tuple of outputs.
        kind: what every payload must be; ``None`` if that was not said.

    Raises:
        PayloadError: there is something in it that cannot be published.
    """
    if result is None:
        return []
    results = result if isinstance(result, (list, tuple)) else (result,)
    outputs = [item if isinstance(item, Outgoing) else Outgoing(item) for item in results]
    for output in outputs:
        if not isinstance(output.data, kind or (bytes, bytearray, memoryview, Data)):
            expected = "bytes, a Data value" if kind is None else kind.__name__
            raise PayloadError(
                f"A node publishes {expected}, an Outgoing with one, or a list of them, not {type(output.data).__name__}."
            )
    return outputs


class Outlet:
    """One node's publisher, which outlasts the broker's absence."""

    def __init__(self, publisher: Publisher, life: Life, *, outcomes_known: bool) -> None:
        self._publisher = publisher
        # Where the backend acknowledges, an output is tried until it is taken; elsewhere a live stream wants fresh data.
        self._acknowledged = life.bus.capabilities.acknowledgement
        self._outcomes_known = outcomes_known and self._acknowledged
        self._meter = life.meter
        self._logger = life.logger
        self._away = False

    @classmethod
    @asynccontextmanager
    async def open(cls, life: Life, topic: str, *, outcomes_known: bool) -> AsyncIterator[Outlet]:
        """The outlet of a node; leaving it flushes.

        Args:
            life: of the node.
            topic: where it publishes.
            outcomes_known: what `send` returns is looked at, so that a refused output is known by that.

        Raises:
            BusError: on leaving, something was refused, or not accepted in time by a broker that acknowledges.
        """
        harmless = False
        try:
            async with life.bus.publisher(topic, name=life.config.name, spread=life.config.spread) as publisher:
                yield cls(publisher, life, outcomes_known=outcomes_known)
                harmless = not life.bus.capabilities.acknowledgement
        except BROKER_AWAY as error:
            if not harmless:
                raise
            # A node that has run for weeks must not fail at its end because a connection was cut once.
            life.logger.warning("Some outputs may be lost: %s", error)

    @property
    def in_flight(self) -> int:
        """Outputs that were handed over and are not acknowledged; always 0 where nothing is."""
        return self._publisher.in_flight

    async def send(self, output: Outgoing) -> asyncio.Future[None] | None:
        """Hand over one output, in order; returns the acknowledgement still to come, if there is one.

        Raises:
            BusError: the output cannot be sent, or it was refused.
        """
        refused: BusError | None = None
        while True:
            try:
                accepted = await self._publisher.send(output.data, output.key, output.headers)
            except BROKER_AWAY as error:
                if not self._acknowledged and isinstance(error, ConnectionLostError):
                    raise
                self.broker_is_away(error)
                if not self._acknowledged:
                    self._meter.unsent += 1
                    return None
                await asyncio.sleep(_RETRY_AFTER)
            except (AuthenticationError, MessageTooLargeError) as error:
                # The publisher raises the refusal of an earlier output here, once. Where that is known by its own
                # acknowledgement, only a second try tells whether this one is refused as well.
                if refused is not None or not self._outcomes_known:
                    raise
                refused = error
            else:
                if self._away:
                    self._away = False
                    self._logger.info("Publishing goes on.")
                self._meter.messages_out += 1
                return accepted

    async def all_accepted(self) -> None:
        """Wait until the broker has acknowledged everything, if it does that at all.

        Raises:
            PublishTimeoutError: it did not in time.
        """
        if not self._acknowledged:
            return
        try:
            await self._publisher.flush()
        except (AuthenticationError, MessageTooLargeError):
            await self._publisher.flush()  # as in `send`: that refusal is known already

    def broker_is_away(self, error: BusError) -> None:
        """Say so, once until it is back."""
        if not self._away:
            self._away = True
            what = "trying until it is taken" if self._acknowledged else "outputs are dropped and counted meanwhile"
            self._logger.warning("Publishing waits for the broker (%s): %s", what, error)
