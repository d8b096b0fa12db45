"""What a node's code gives to be published, and how it is handed to the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from msight_bus.data import Data
from msight_bus.errors import (
    BusError,
    ClosedError,
    ConnectionLostError,
    PayloadError,
    PublishTimeoutError,
    fresh,
)
from msight_bus.nodes.node_run import NodeRun
from msight_bus.payload import Payload
from msight_bus.publisher import Publisher

BROKER_AWAY = (PublishTimeoutError, ConnectionLostError)
"""Not the fault of a node's code, and it passes: a node outlasts it."""

BUS_IS_OVER = (ClosedError, ConnectionLostError)
"""Raised by a `NodePublisher`: the bus was closed, or has given up reconnecting. Nothing can be published any more."""

RETRY_AFTER = 0.1  # seconds; a publish that finds no broker has waited ``publish_timeout`` already


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
Result = Output | Sequence[Output] | None
"""What a node's code returns."""

Accepted = asyncio.Future[None]


class NodePublisher:
    """One node's publisher, which outlasts the broker's absence.

    Attributes:
        plain: whether outputs of type ``bytes`` can be given to `send_plain`.
        send_plain: sends one payload of type ``bytes`` without a key; what it raises is given to `send`.
        on_failure: called with the refusal of an output that was handed over, where that ends the node.
    """

    def __init__(self, publisher: Publisher, run: NodeRun) -> None:
        self._keeps = run.bus.capabilities.acknowledgement
        self._publisher = publisher
        self._topic = publisher.topic
        self._run = run
        self._meter = run.meter
        self._key = run.config.key
        self._type = run.config.publish_topic_data_type
        self._drops = run.config.while_disconnected == "drop"
        self._waits = False
        self._sending: asyncio.Timeout | None = None
        self.plain = self._key is None and self._type is None and not self._drops
        self.send_plain = publisher.send
        self.on_failure: Callable[[Exception], None] = lambda _: run.stopping.set()
        self._failure: BusError | None = None
        run.on_away = self._away
        publisher.report_refusals(self._refused)

    @classmethod
    @asynccontextmanager
    async def open(cls, run: NodeRun, topic: str) -> AsyncIterator[NodePublisher]:
        """The publisher of a node; leaving it flushes.

        Raises:
            BusError: on leaving, an output was refused where that ends the node, or not accepted in time by a broker that
                acknowledges.
        """
        harmless = False
        try:
            async with run.bus.publisher(topic, name=run.config.name, spread=run.config.spread) as publisher:
                made = cls(publisher, run)
                yield made
                harmless = not run.bus.capabilities.acknowledgement
        except BROKER_AWAY as error:
            if not harmless:
                raise
            # A node that has run for weeks must not fail at its end because a connection was cut once.
            run.logger.warning("Some outputs may be lost: %s", error)
        if made._failure is not None:
            raise fresh(made._failure)

    @property
    def in_flight(self) -> int:
        """Outputs that were handed over and are not acknowledged; always 0 where nothing is."""
        return self._publisher.in_flight

    def outputs(self, result: object) -> list[Outgoing]:
        """Return what a node's code returned, as a list.

        Raises:
            PayloadError: there is something in it that cannot be published.
        """
        if result is None:
            return []
        results = result if isinstance(result, (list, tuple)) else (result,)
        outputs = [item if isinstance(item, Outgoing) else Outgoing(item) for item in results]
        for output in outputs:
            if not isinstance(output.data, self._type or (bytes, bytearray, memoryview, Data)):
                expected = "bytes, a Data value" if self._type is None else self._type.__name__
                given = type(output.data).__name__
                raise PayloadError(
                    f"A node publishes {expected}, an Outgoing with one, or a list of them, not {given}."
                )
        return outputs

    async def send(self, output: Outgoing, error: BusError | None = None) -> Accepted | None:
        """Hand over one output, in order; returns the acknowledgement still to come, if there is one.

        Args:
            output: the output.
            error: what `send_plain` raised for it.

        Raises:
            BusError: the output cannot be sent.
        """
        if not self._drops:
            return await self._deliver(output, error)
        try:
            if not self._run.away:
                async with asyncio.timeout(None) as self._sending:
                    return await self._deliver(output, error)
        except TimeoutError:  # of `_away`: `_deliver` raises none where outputs are dropped
            pass
        finally:
            self._sending = None
        self._drop()
        return None

    def _away(self) -> None:
        """The broker is away: an output that waits is dropped, where that was chosen."""
        if self._sending is not None:
            self._sending.reschedule(asyncio.get_running_loop().time())

    def _drop(self) -> None:
        self._run.unsent(self._topic, 1, "while_disconnected='drop'")

    async def _deliver(self, output: Outgoing, error: BusError | None) -> Accepted | None:
        key = self._key if output.key is None else output.key
        while True:
            if error is None:
                try:
                    accepted = await self._publisher.send(output.data, key, output.headers)
                except BusError as found:
                    error = found
                else:
                    self._delivered(output)
                    return accepted
            if not isinstance(error, BROKER_AWAY) or (isinstance(error, ConnectionLostError) and not self._keeps):
                raise error
            self.broker_is_away(error)
            if self._drops:
                self._drop()
                return None
            await asyncio.sleep(RETRY_AFTER)
            error = None

    def _refused(self, error: BusError, count: int) -> None:
        """Count outputs that were not accepted after they had been handed over."""
        count = min(count, self._meter.messages_out)  # NATS names the topic of a refusal only, not the publisher
        self._meter.messages_out -= count
        if not isinstance(error, BROKER_AWAY):
            self._run.code_failed(error, count=count)
            if self._run.config.action_on_error == "stop":
                self._failure = error
                self.on_failure(error)
        elif self._run.config.subscribe_topic_name is None:  # else its input comes again
            self._run.unsent(self._topic, count, str(error))

    def _delivered(self, output: Outgoing) -> None:
        self._meter.messages_out += 1
        if self._waits:
            self._waits = False
            self._run.logger.info("Publishing goes on.")
        if self._run.logger.isEnabledFor(logging.DEBUG):
            what = f"{len(output.data)} bytes" if isinstance(output.data, bytes) else type(output.data).__name__
            line = "Published on %s: %s, sequence %d of session %d."
            if (last := self._publisher.counter) is not None:
                self._run.logger.debug(line, self._topic, what, last.sequence, last.session)

    async def all_accepted(self) -> None:
        """Wait until the broker has acknowledged everything, if it does that at all.

        Raises:
            PublishTimeoutError: it did not in time.
        """
        if self._keeps:
            await self._publisher.flush()

    def broker_is_away(self, error: BusError) -> None:
        """Say so, once until it is back."""
        if not self._waits:
            self._waits = True
            if not self._run.away:  # else it was said
                self._run.logger.warning("Publishing waits for the broker: %s", error)
