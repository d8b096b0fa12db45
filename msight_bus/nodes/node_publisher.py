"""The outputs of a node, and the publisher that retries them while disconnected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from msight_bus.data import Data
from msight_bus.data.types import payload_type
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

if TYPE_CHECKING:
    from typing_extensions import TypeVar as Variable  # has ``default``

    In = Variable("In", default=Any)
    Out = Variable("Out", default=Any)
    Out_co = Variable("Out_co", covariant=True, default=Payload)
else:
    In, Out, Out_co = TypeVar("In"), TypeVar("Out"), TypeVar("Out_co", covariant=True)

BROKER_DOWN = (PublishTimeoutError, ConnectionLostError)
"""Errors while the broker is down; a node retries after them."""

BUS_CLOSED = (ClosedError, ConnectionLostError)
"""Errors of a `NodePublisher` after which nothing can be published: the bus was closed or no longer reconnects."""

A_TURN = 250
"""Outputs after which a node that never waits yields to the event loop, so that other nodes of the process keep up."""

RETRY_AFTER = 0.1  # seconds; the failed publish has already waited ``publish_timeout``


@dataclass(frozen=True, slots=True)
class Outgoing(Generic[Out_co]):
    """An output with a key or headers: ``return Outgoing(track, key=track.sensor_name)``.

    A list is several outputs: to publish a list as one output, return ``Outgoing(list)``.

    Attributes:
        data: a value of the node's type, else bytes-like or a ``Data`` value.
        key: outputs with the same key keep their order; on Kafka, a group shares outputs with different keys.
        headers: headers of the message.
    """

    data: Out_co
    key: str | None = None
    headers: Mapping[str, str] | None = None


Result: TypeAlias = Out | Outgoing[Out] | Sequence[Out | Outgoing[Out]] | None
"""The result of a node's code: nothing, an output or several."""

Accepted = asyncio.Future[None]
"""The acknowledgement of an output."""


class NodePublisher:
    """The publisher of a node. While the broker is down, outputs are retried or dropped, as configured.

    Attributes:
        plain: whether outputs of type ``bytes`` can be given to `send_plain`.
        send_plain: sends one payload of type ``bytes`` without a key; the caller passes an error that it raises to `send`.
        on_failure: called with the error of an output that was refused after it was sent, if that ends the node.
    """

    def __init__(self, publisher: Publisher[Any], run: NodeRun) -> None:
        self._keeps = run.bus.capabilities.acknowledgement
        self._publisher = publisher
        self._topic = publisher.topic
        self._run = run
        self._meter = run.meter
        self._key = run.config.key
        kind = run.config.publish_topic_data_type
        self._type = None if kind is None else payload_type(kind)
        self._drops = run.config.while_disconnected == "drop"
        self._stops = run.config.action_on_error == "stop"
        self._waits = False
        self._sending: asyncio.Timeout | None = None
        self.plain = self._key is None and kind in (None, bytes) and not self._drops
        self.send_plain = publisher.send
        self.on_failure: Callable[[Exception], None] = lambda _: run.stopping.set()
        self._failure: BusError | None = None
        run.on_disconnected = self._drop_current
        publisher.report_refusals(self._refused)

    @classmethod
    @asynccontextmanager
    async def open(cls, run: NodeRun, topic: str) -> AsyncIterator[NodePublisher]:
        """Open the publisher of a node; leaving the context flushes.

        Raises:
            BusError: on leaving, an output was refused and that ends the node, or an output was not acknowledged in time on a
                backend with acknowledgement.
        """
        harmless = False
        try:
            kind = run.config.publish_topic_data_type
            async with run.bus.publisher(topic, name=run.config.name, spread=run.config.spread, type=kind) as publisher:
                made = cls(publisher, run)
                yield made
                harmless = not run.bus.capabilities.acknowledgement
        except BROKER_DOWN as error:
            if not harmless:
                raise
            # Without acknowledgements, a disconnect during the run must not fail the node at its end.
            run.logger.warning("Outputs may be lost: %s", error)
        except asyncio.CancelledError:
            if harmless:
                run.logger.warning(
                    "Outputs may be lost: the broker had not confirmed them when the node was cancelled."
                )
            raise
        if made._failure is not None:
            raise fresh(made._failure)

    @property
    def in_flight(self) -> int:
        """Number of outputs in flight; 0 on backends without acknowledgement."""
        return self._publisher.in_flight

    @property
    def waits(self) -> bool:
        """Whether an output waits for the broker."""
        return self._waits or self._publisher.waits

    def outputs(self, result: object) -> list[Outgoing[Any]]:
        """Return the result of a node's code as a list of outputs.

        Raises:
            PayloadError: an item cannot be published.
        """
        if result is None:
            return []
        results = result if isinstance(result, (list, tuple)) else (result,)
        outputs = [item if isinstance(item, Outgoing) else Outgoing(item) for item in results]
        classes = (bytes, bytearray, memoryview, Data) if self._type is None else self._type.classes
        for output in outputs:
            if classes and not isinstance(output.data, classes):
                expected = "bytes, a Data value" if self._type is None else self._type.name
                given = type(output.data).__name__
                typed = (
                    "" if self._type else " A class such as ProcessingNode[bytes, Track] has outputs of another type."
                )
                raise PayloadError(
                    f"A node's output must be {expected}, an Outgoing with one, or a list of these, not {given}.{typed}"
                )
        return outputs

    async def send(self, output: Outgoing[Any], error: BusError | None = None) -> Accepted | None:
        """Send one output, in order, and return its acknowledgement; ``None`` if the backend has none, or the output was dropped.

        Args:
            output: the output.
            error: the error of `send_plain` for this output, if there was one.

        Raises:
            BusError: the output cannot be sent.
        """
        if not self._drops:
            return await self._deliver(output, error)
        try:
            if not self._run.is_disconnected:
                async with asyncio.timeout(None) as self._sending:
                    return await self._deliver(output, error)
        except TimeoutError:  # from `_drop_current`: `_deliver` raises none when outputs are dropped
            pass
        finally:
            self._sending = None
        self._drop()
        return None

    def _drop_current(self) -> None:
        """Drop the output that is being sent, because the bus has disconnected; only with ``while_disconnected="drop"``."""
        if self._sending is not None:
            self._sending.reschedule(asyncio.get_running_loop().time())

    def _drop(self) -> None:
        self._run.unsent(self._topic, 1, "while_disconnected='drop'")

    async def _deliver(self, output: Outgoing[Any], error: BusError | None) -> Accepted | None:
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
            if not isinstance(error, BROKER_DOWN) or (isinstance(error, ConnectionLostError) and not self._keeps):
                raise error
            self.log_waiting(error)
            if self._drops:
                self._drop()
                return None
            await asyncio.sleep(RETRY_AFTER)
            error = None

    def _refused(self, error: BusError, count: int) -> None:
        """Count outputs that were refused after they were sent."""
        count = min(count, self._meter.messages_out)  # a refusal by NATS names only the topic
        self._meter.messages_out -= count
        if not isinstance(error, BROKER_DOWN):
            self._run.code_failed(error, count=count)
            if self._stops:
                self._failure = error
                self.on_failure(error)
        elif self._run.config.subscribe_topic_name is None:  # else its input is redelivered
            self._run.unsent(self._topic, count, str(error))

    def _delivered(self, output: Outgoing[Any]) -> None:
        self._meter.messages_out += 1
        if self._waits:
            self._waits = False
            self._run.logger.info("Publishing resumed.")
        if self._run.logger.isEnabledFor(logging.DEBUG):
            what = f"{len(output.data)} bytes" if isinstance(output.data, bytes) else type(output.data).__name__
            line = "Published on %s: %s, sequence %d of session %d."
            if (last := self._publisher.counter) is not None:
                self._run.logger.debug(line, self._topic, what, last.sequence, last.session)

    async def all_accepted(self) -> None:
        """Wait until all outputs are acknowledged, on backends with acknowledgement.

        Raises:
            PublishTimeoutError: the broker did not acknowledge in time.
        """
        if self._keeps:
            await self._publisher.flush()

    def log_waiting(self, error: BusError) -> None:
        """Log that publishing waits, once until an output is sent again."""
        if not self._waits:
            self._waits = True
            if not self._run.is_disconnected:  # else the disconnect was logged
                self._run.logger.warning("Publishing waits for the broker: %s", error)
