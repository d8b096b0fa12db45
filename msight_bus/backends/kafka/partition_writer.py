"""Batches the records of one partition, in order, with the sequence numbers that make publishing idempotent.

While one batch is in flight the next one fills, so batches grow with the publish rate and no timer delays them. A partition has
at most one batch in flight. A batch that was certainly not appended leaves its sequence numbers to the next one; after a batch
with an unknown outcome, this partition needs another producer id.
"""

from __future__ import annotations

import asyncio
import logging
from binascii import hexlify
from collections import deque
from collections.abc import Generator, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition

from msight_bus.backends.kafka.aiokafka_compat import RecordHeader
from msight_bus.backends.kafka.errors import InvalidRecordError, translate
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError
from msight_bus.protocol.envelope import HEADER, TopicCounter, pack_meta

if TYPE_CHECKING:
    from msight_bus.backends.kafka.producer import KafkaProducer

logger = logging.getLogger("msight_bus")

_QUEUED_BATCHES = 2
"""Number of full batches at which publishers wait."""

_TURN_BYTES = 128 * 1024
"""Bytes after which a publisher that never had to wait yields to the event loop."""

_RETRY_AFTER = 0.1
"""Seconds until a batch is sent again."""

_TOLD_AT = 10
"""Attempts after which the reason is logged, once for each batch: an election of a leader takes fewer."""

_MAX_SEQUENCE = 2**31 - 1

_NOT_APPENDED = (
    InvalidRecordError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.CorruptRecordException,
    kafka_errors.InvalidRequestError,
    kafka_errors.InvalidRequiredAcksError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.PolicyViolationError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.UnsupportedVersionError,
)
"""A batch whose first attempt is answered with one of these is not in the log."""


class ProducerId(NamedTuple):
    """Identifies an idempotent producer to the broker (KIP-98)."""

    id: int
    epoch: int


class _Acknowledgement(asyncio.Future[None]):
    """The acknowledgement of a batch. Its publishers share the future, so cancelling one of them does not cancel it."""

    def __await__(self) -> Generator[Any, None, None]:
        return super().__await__() if self.done() else asyncio.shield(self).__await__()

    def cancel(self, msg: object = None) -> bool:
        """Ignore the cancellation and return false."""
        return False


class _Batch:
    """Records that are sent together.

    Attributes:
        done: acknowledgement of the batch.
        attempts: number of times that the batch was written to a connection.
        data: the encoded batch; ``None`` before the first attempt.
        begun: when the batch was created, by the loop's clock.
        count: number of records.
    """

    __slots__ = ("append", "attempts", "begun", "builder", "count", "data", "done")

    def __init__(self, builder: Any) -> None:
        loop = asyncio.get_running_loop()
        self.builder = builder
        self.append = builder.append
        self.count = 0
        self.attempts = 0
        self.data: bytes | None = None
        self.begun = loop.time()
        self.done = _Acknowledgement(loop=loop)


class PartitionWriter:
    """The batches of one partition.

    Attributes:
        where: topic and partition.
        unfinished: pending acknowledgements.
        congested: whether a publisher must wait for `room`.
        used_at: when the last batch was created, by the loop's clock.
        producer_id: producer id of the batches; ``None`` until the next batch is sent.
        sequence: sequence number of the first record of the next batch.
        spent: producer id that must not be used again, because the outcome of a batch is unknown.
    """

    def __init__(self, where: TopicPartition, owner: KafkaProducer, counter: TopicCounter, linger: float) -> None:
        """
        Args:
            where: topic and partition.
            owner: sends the batches.
            counter: session and last sequence of the topic.
            linger: seconds that a batch waits for further records.
        """
        self.where = where
        self._owner = owner
        self._counter = counter
        self._linger = linger
        self._filling: _Batch | None = None
        self._full: deque[_Batch] = deque()
        self._sending: _Batch | None = None
        self._is_awake = False  # whether the owner is sending or will send
        self._lingering: asyncio.TimerHandle | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._turn_bytes = 0
        self.sequence = 0
        self.producer_id: ProducerId | None = None
        self.spent: ProducerId | None = None
        self.unfinished: set[asyncio.Future[None]] = set()
        self.congested = False
        self.used_at = 0.0

    def append(self, key: bytes | None, value: bytes | None, user: Sequence[RecordHeader] = ()) -> asyncio.Future[None]:
        """Add a record, with the bus's header, to the current batch and return the acknowledgement of the batch.

        Args:
            key: the record's key.
            value: the record's value.
            user: the publisher's headers.
        """
        now = time_ns()
        counter = self._counter
        counter.sequence = sequence = counter.sequence + 1
        headers = [(HEADER, hexlify(pack_meta(counter.session, sequence, now))), *user]
        batch = self._filling or self._next()
        if batch.append(batch.count, now // 1_000_000, key, value, headers) is None:
            self._full.append(batch)
            batch = self._next()
            batch.append(0, now // 1_000_000, key, value, headers)
            if len(self._full) >= _QUEUED_BATCHES:
                self.congested = True
                self._room.clear()
            if self._lingering is not None:
                self._end_lingering()
        batch.count += 1
        self._turn_bytes += (0 if value is None else len(value)) + 64
        if self._turn_bytes > _TURN_BYTES and not self.congested:
            self._turn_bytes = 0
            self.congested = True
            self._room.clear()
            asyncio.get_running_loop().call_soon(self._give_room)
        if not self._is_awake:
            self._is_awake = True
            self._owner.wake(self)
        return batch.done

    def _next(self) -> _Batch:
        self._filling = batch = _Batch(self._owner.new_builder(self.where.topic))
        self.used_at = batch.begun
        self.unfinished.add(batch.done)
        batch.done.add_done_callback(self._finished)
        return batch

    def _finished(self, done: asyncio.Future[None]) -> None:
        self.unfinished.discard(done)
        if not done.cancelled():
            done.exception()  # marked as retrieved: the publisher may not wait for the outcome

    def _give_room(self) -> None:
        if len(self._full) < _QUEUED_BATCHES:
            self.congested = False
            self._room.set()

    @property
    def is_idle(self) -> bool:
        """Whether no record is queued or in flight."""
        return not self.unfinished and not self._is_awake

    async def room(self) -> None:
        """Wait until the writer is not congested."""
        while self.congested:
            await self._room.wait()

    # -- sending

    def take(self) -> bool:
        """Choose the batch to send next and return whether there is one. A writer without a batch calls `KafkaProducer.wake`."""
        if self._sending is None and self._full:
            self._sending = self._full.popleft()
            self._give_room()
        elif self._sending is None and self._filling is not None and not self._lingers(self._filling):
            self._sending, self._filling = self._filling, None
            self._give_room()
        self._is_awake = self._sending is not None or self._lingering is not None
        return self._sending is not None

    def _lingers(self, batch: _Batch) -> bool:
        if not self._linger:
            return False
        loop = asyncio.get_running_loop()
        until = batch.begun + self._linger
        if loop.time() < until and self._lingering is None:
            self._lingering = loop.call_at(until, self._end_lingering)
        return loop.time() < until

    def _end_lingering(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._owner.wake(self)

    def encode(self) -> bytes | None:
        """Return the encoded batch to send and count an attempt; ``None`` if encoding failed, which fails the batch."""
        batch, producer = self._sending, self.producer_id
        assert batch is not None
        assert producer is not None
        try:
            if batch.data is None:
                batch.builder.set_producer_state(*producer, self.sequence)
                batch.data = batch.builder.build()
        except Exception as error:  # a compression codec can raise anything
            self._end(error)
            return None
        batch.attempts += 1
        return batch.data

    def answered(self, error: kafka_errors.KafkaError | None) -> None:
        """Handle the broker's response to the batch; ``error`` is ``None`` if the batch was appended."""
        batch = self._sending
        if batch is None:  # the bus has closed
            return
        if error is None or isinstance(error, kafka_errors.DuplicateSequenceNumber):
            self.sequence = (self.sequence + batch.count) & _MAX_SEQUENCE
            self._end(None)
        elif error.retriable:
            if batch.attempts == _TOLD_AT:
                logger.warning("Publishing on %s, partition %d, is refused again and again: %r", *self.where, error)
            self.retry(error)
        else:
            self._refuse(error, is_unknown=batch.attempts > 1 or not isinstance(error, _NOT_APPENDED))

    def retry(self, error: BaseException | None = None) -> None:
        """Send the batch again with the same sequence numbers, by which the broker detects a duplicate.

        Args:
            error: why the last attempt failed; ``None`` before the first attempt.
        """
        if self._sending is not None:
            name = f"msight_bus retry {self.where.topic}-{self.where.partition}"
            self._retrying = asyncio.create_task(self._retry(error), name=name)

    async def _retry(self, error: BaseException | None) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._owner.patience
        while True:
            if error is not None:
                await asyncio.sleep(_RETRY_AFTER)
            try:
                await self._owner.prepare(self, stale=getattr(error, "invalid_metadata", False))
            except Exception as problem:
                missing = not self._owner.is_located(self.where) and loop.time() > give_up_at
                if missing or not _is_passing(problem):
                    self._refuse(problem, is_unknown=self._sending is not None and self._sending.attempts > 0)
                    return
                error = problem
            else:
                self._owner.wake(self)
                return

    def _refuse(self, error: BaseException, *, is_unknown: bool) -> None:
        """End the batch that was sent; ``is_unknown`` is whether it can be in the log."""
        if is_unknown:
            self.spent, self.producer_id = self.producer_id, None
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Set the outcome of the current batch and continue with the next one."""
        batch, self._sending = self._sending, None
        if batch is None:  # the bus has closed
            return
        self._owner.wake(self)
        if isinstance(error, kafka_errors.MessageSizeTooLargeError):
            self._owner.too_large(self.where.topic)
        if batch.done.done():
            return
        if error is None:
            batch.done.set_result(None)
            return
        problem = translate(error, "publish", f"on {self.where.topic!r}")
        if problem is not error:
            problem.__cause__ = error
        batch.done.set_exception(problem)

    def give_up(self, error: BusError) -> asyncio.Task[None] | None:
        """Stop: pending acknowledgements raise ``error``.

        Returns:
            The cancelled retry, for the caller to await, if there is one.
        """
        self._sending = self._filling = None
        self._full.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        for done in list(self.unfinished):
            if not done.done():
                done.set_exception(error)
        if self._retrying is not None:
            self._retrying.cancel()
        return self._retrying


def _is_passing(error: Exception) -> bool:
    """Return whether another attempt can succeed."""
    if isinstance(error, kafka_errors.KafkaError):
        return bool(error.retriable)
    # a PublishTimeoutError, which is an OSError too, is the outcome: the partition is gone
    return isinstance(error, ConnectionLostError | OSError) and not isinstance(error, PublishTimeoutError)
